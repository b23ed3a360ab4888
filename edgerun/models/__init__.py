"""Architectures, declared, and the one decoder that runs them."""

from edgerun.models.batch import Batch, Stretch
from edgerun.models.decoder import Decoder
from edgerun.models.families import FAMILIES, Family
from edgerun.models.places import Wave
from edgerun.models.shapes import load_spec
from edgerun.models.spec import ModelSpec

__all__ = ["FAMILIES", "Batch", "Decoder", "Family", "ModelSpec", "Stretch", "Wave", "load_spec"]
