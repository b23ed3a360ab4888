"""What the last run has seen: kept whole or not at all, believed only where it is whole, and what plans are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun import LLM
from edgerun.api.planning import plan_model
from edgerun.api.seen import last_run_path
from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.models.spec import ModelSpec
from edgerun.weights.last_run import TOKENS, LastRun, RoutingNotes, load_last_run, save_last_run
from tests.faults.subjects import loading_plan
from tests.models.instances import INSTANCES, write
from tests.text.vocabularies import sentencepiece

LAYERS, EXPERTS = 4, 9
TOKEN = st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=2).map(lambda ids: [[], ids, [], ids[::-1]])


@settings(max_examples=40, deadline=None)
@given(st.lists(TOKEN, min_size=1, max_size=TOKENS), st.booleans(), st.floats(1.0, 1e12))
def test_it_comes_back_as_it_was(tmp_path_factory, routing, packed, rate):
    run, path = LastRun(1e9, 7, packed, 33, rate, routing), tmp_path_factory.mktemp("kept") / "m.run"
    save_last_run(path, run)
    assert load_last_run(path, LAYERS, EXPERTS) == run


def test_what_is_damaged_or_of_another_model_is_dropped(tmp_path):
    run = LastRun(1e9, 7, False, 33, 1e9, [[[], [1, 2], [], [3, 4]]] * 3)
    path = tmp_path / "m.run"
    save_last_run(path, run)
    good = json.loads(path.read_bytes())
    said: list[object] = []
    bad = [{"version": 2}, {"disk_bytes_per_s": float("nan")}, {"disk_bytes_per_s": -1}, {"time": float("inf")}]
    bad += [{"count": 5}, {"layers": [3, 1]}, {"layers": [1, 4]}, {"layers": []}, {"used": 0}, {"used": 1 << 40}]
    bad += [{"routing": []}, {"routing": [[1, 2, 3]]}, {"routing": [[1, 2, 3, 9]]}, {"routing": [[1, 2, 3, True]]}]
    bad += [{"routing": [[1, 2, 3, 4]] * (TOKENS + 1)}, {"routing": 5}, {"device": "sda"}, {"slots": -1}]
    for content in (*(json.dumps(good | each) for each in bad), "[]", "{}", "[" * 100_000, "\x00"):
        path.write_text(content)
        assert load_last_run(path, LAYERS, EXPERTS, said.append) is None
        assert not path.exists(), content[:200]
    assert len(said) == len(bad) + 4
    save_last_run(path, run)
    assert load_last_run(path, LAYERS, 4) is None, "of experts that there are not"


def test_only_tokens_of_which_all_is_known_are_noted():
    notes = RoutingNotes(3)
    one = np.array([[1, 2]], np.int32)
    notes.note(0, np.zeros((5, 2), np.int32))  # a prompt
    notes.note(2, np.zeros((5, 2), np.int32))
    for layer in (0, 2, 0, 2, 0):  # the last was cancelled
        notes.note(layer, one + layer)
    assert notes.routing() == [[[1, 2], [], [3, 4]]] * 2
    for _ in range(3 * TOKENS):
        notes.note(0, one)
        notes.note(2, one)
    assert len(notes.routing()) <= TOKENS


@pytest.fixture
def mixture(tmp_path):
    return write(INSTANCES["olmoe"], tmp_path / "olmoe.gguf", sentencepiece())


def test_a_plan_is_made_of_what_the_last_run_saw(mixture, monkeypatch):
    """Of a model that streams: whom tokens chose, and how fast the disk was."""
    monkeypatch.setattr("edgerun.weights.streamed_experts.LEAST_BYTES", 1)
    plain = loading_plan()

    def planned(gguf: GgufFile, spec: ModelSpec, **more: Any) -> Any:  # the tiny model would fit
        every = spec.n_layers * spec.n_experts
        tight = {"mode": "experts", "slots": 6, "wave_tokens": 8, "slot_bytes": 1 << 16, "all_experts": every}
        return replace(plain(gguf, spec, **more), layers=spec.n_layers, **tight)

    monkeypatch.setattr("edgerun.api.weights.plan_weights", planned)
    first = plan_model(mixture)
    assert not first.is_seen and first.assumed_routing
    with LLM(mixture, threads=1) as llm:
        llm.complete("a", max_tokens=40, temperature=0.0, ignore_eos=True)
    with open_gguf(mixture) as gguf:
        kept = last_run_path(gguf)
    again = plan_model(mixture)
    assert again.is_seen and not again.assumed_routing
    seen = json.loads(kept.read_bytes())
    assert again.rates.disk_bytes_per_s == seen["disk_bytes_per_s"]
    for change in ({"packed": not seen["packed"]}, {"device": seen["device"] + 1}, {"time": 1e9}, {"slots": 4}):
        kept.write_text(json.dumps(seen | change))
        other = plan_model(mixture)
        assert other.is_seen and other.rates.disk_bytes_per_s == first.rates.disk_bytes_per_s
    kept.write_text(json.dumps(seen))
    told = plan_model(mixture, routing=[[[0, 1]] * first.memory.layers] * 4)
    assert not told.is_seen and told.rates.disk_bytes_per_s == seen["disk_bytes_per_s"]
