"""What calibration chose for prompts never makes a model need more memory, nor be streamed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgerun.api import prefill
from edgerun.api.prefill import BACKEND_BYTES, plan_backend
from edgerun.errors import DoesNotFitError
from edgerun.events import Notice
from tests.planning.test_memory import LLAMA_7B, MIB, OLMOE, plan


class Wanted:
    """A backend that takes this much of a streamed model's memory."""

    calibration = None
    choice = SimpleNamespace(text="ort-cpu:w8a8")

    def __init__(self, scratch_bytes):
        self.scratch_bytes = scratch_bytes

    def reserve_bytes(self, spec, plan):
        return 0 if plan.mode == "resident" else self.scratch_bytes


def chosen(monkeypatch, how, model, budget, scratch_bytes):
    """(plan without a backend, what is chosen, what is said)."""
    said, opened = [], []
    monkeypatch.setattr(prefill, "kept_calibration", lambda *_: SimpleNamespace(choice="ort-cpu:w8a8"))
    monkeypatch.setattr(prefill, "wanted_backend", lambda *_: opened.append(1) or Wanted(scratch_bytes))

    def planned(reserved):
        return plan(model, budget - reserved)

    alone = planned(0)
    wanted, made = plan_backend(how, None, None, None, planned, said.append)
    return alone, wanted, made, opened, said


@pytest.mark.parametrize("model", [OLMOE, LLAMA_7B], ids=["olmoe", "llama-7b"])
@pytest.mark.parametrize("scratch_bytes", [0, 30 * MIB, 300 * MIB])
def test_auto_never_costs_the_model_its_place(monkeypatch, model, scratch_bytes):
    floor = plan(model, 1 << 50).floor_bytes
    resident = plan(model, 1 << 50).total_bytes
    for base in (floor, resident):
        for more in (0, BACKEND_BYTES - 1, BACKEND_BYTES, BACKEND_BYTES + 2 * scratch_bytes, 1 << 30):
            alone, wanted, made, opened, said = chosen(monkeypatch, "auto", model, base + more, scratch_bytes)
            assert made.mode == alone.mode
            if more < BACKEND_BYTES and base == floor:
                assert not opened, "not even its libraries are loaded"
            assert (wanted is None) == any(isinstance(event, Notice) for event in said), "the user is told"
            if more == 1 << 30:
                assert wanted is not None


def test_what_was_asked_for_is_refused_where_it_does_not_fit(monkeypatch):
    floor = plan(OLMOE, 1 << 50).floor_bytes
    with pytest.raises(DoesNotFitError):
        chosen(monkeypatch, "ort-cpu:w8a8", OLMOE, floor, 300 * MIB)
    assert chosen(monkeypatch, "ort-cpu:w8a8", OLMOE, floor + 400 * MIB, 300 * MIB)[1] is not None
