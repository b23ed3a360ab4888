"""Real weights: they load under their labels, and answer as llama.cpp does (tools/record_real.py recorded it)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun import LLM
from edgerun.formats.gguf import open_gguf
from edgerun.hub import show
from tests.real.models import GEMMA, SMOLLM2, RealModel

pytestmark = pytest.mark.real

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "golden.json").read_text())
LABELS = {GEMMA.file: "Q4_K_M", SMOLLM2.file: "Q4_1"}
TYPES = {
    GEMMA.file: {"F32": 109, "Q8_0": 10, "Q5_0": 81, "Q4_K": 27, "Q6_K": 9},
    SMOLLM2.file: {"F32": 61, "Q8_0": 1, "Q4_1": 210},
}
# llama.cpp rounds activations to eight bits of another block, or does where we do not (Q4_1, Q5_0): so far apart are
# logits, in units of their deviation (measured: 0.18 at most), and so large a lead can change hands.
APART = 0.25


@pytest.fixture
def llm(real_model: RealModel) -> Iterator[LLM]:
    with LLM(real_model.path, context=256) as loaded:
        yield loaded


def test_labels(real_model: RealModel) -> None:
    assert real_model.path.stat().st_size == real_model.n_bytes
    assert show(real_model.path).quantisation == LABELS[real_model.file]
    counts: dict[str, int] = {}
    with open_gguf(real_model.path) as gguf:
        for info in gguf.tensors.values():
            counts[info.type.name] = counts.get(info.type.name, 0) + 1
    assert counts == TYPES[real_model.file]


def test_answers_are_llama_cpps(real_model: RealModel, llm: LLM) -> None:
    """Tokens are the same; logits nearly; and greedy texts part only where two tokens were nearly as good."""
    for entry in GOLDEN[real_model.file]:
        ids = llm.tokenize(entry["prompt"])
        assert ids == entry["ids"]
        logits = llm.logits(ids)[-1].astype(np.float64)
        allowed = APART * entry["deviation"]
        highest = {int(token): value for token, value in entry["highest"].items()}
        assert max(abs(logits[token] - value) for token, value in highest.items()) <= allowed
        assert logits.max() - max(highest.values()) <= allowed, "no other token is far above them"
        answer = llm.complete(ids, max_tokens=16, temperature=0)
        for ours, theirs, margin in zip(answer.token_ids, entry["following"], entry["margins"], strict=False):
            if ours != theirs:
                assert margin <= allowed
                break
