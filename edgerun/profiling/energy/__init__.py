"""Joules: who counts them here, and what a stretch of work took. Every figure carries the method that it came by."""

from edgerun.profiling.energy.find import METERS, find_meter
from edgerun.profiling.energy.meter import Energy, EnergyMeter, Reading, Source, Window, describe

__all__ = ["METERS", "Energy", "EnergyMeter", "Reading", "Source", "Window", "describe", "find_meter"]
