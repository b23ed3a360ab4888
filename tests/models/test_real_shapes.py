"""Files of real models' shapes that benchmarks write: their tensors are those that the families declare."""

from __future__ import annotations

import importlib
from math import prod
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BILLIONS = {"llama-7b": 6.7, "gpt-oss-20b": 20.9, "qwen3.6-35b-a3b": 34.7, "gemma4-26b-a4b": 25.2, "lfm2-8b-a1b": 8.3}


def test_they_have_as_many_weights_as_they_are_named_for(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    random_model, shapes = importlib.import_module("random_model"), importlib.import_module("model_shapes").SHAPES
    for name, shape in shapes.items():
        found = random_model.shapes_of(shape, shape.metadata)
        assert found["token_embd.weight"][0] == shape.vocabulary
        billions = sum(map(prod, found.values())) / 1e9
        assert name not in BILLIONS or abs(billions / BILLIONS[name] - 1) < 0.03, f"{name}: {billions:.1f}"
