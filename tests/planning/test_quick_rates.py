"""Rates that a device tells the others: quick, sensible, kept."""

from __future__ import annotations

import time

from edgerun.kernels import load_kernels, load_sizes
from edgerun.planning.quick_rates import TYPE, QuickRates, kept_or_measured, measure_quickly


def test_rates_are_measured_once_and_kept(tmp_path):
    made = []

    def make():
        made.append(load_kernels("auto", threads=1, types=[TYPE]))
        return made[-1], load_sizes("auto")

    path = tmp_path / "rates.json"
    found = kept_or_measured(path, make)
    assert 1e8 < found.weights_bytes_per_s < 1e13 and 1e8 < found.prompt_ops_per_s < 1e15
    assert found.prompt_ops_per_s > found.weights_bytes_per_s  # a byte of weights is two numbers, each used 64 times
    assert 1e5 < found.disk_bytes_per_s < 1e12 and not list(tmp_path.glob("*probe*"))
    assert kept_or_measured(path, make) == found and len(made) == 1
    for text in ("[1]", path.read_text().replace('processor": "', 'processor": "another ')):
        path.write_text(text)
        assert isinstance(kept_or_measured(path, make), QuickRates)
    assert len(made) == 3


def test_kernels_without_the_type_take_no_long_time(tmp_path, monkeypatch):
    def full(folder, n_bytes):
        raise OSError("no space left")

    monkeypatch.setattr("edgerun.planning.quick_rates.probe_file", full)
    began = time.process_time()
    found = measure_quickly(load_kernels("reference"), load_sizes("reference"), tmp_path)
    assert found.disk_bytes_per_s == 0  # not known: the rest is
    assert found.weights_bytes_per_s > 0 and time.process_time() - began < 5
