"""The embedded models against llama.cpp on the same files (tools/record_tales.py); they need nothing from outside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.text import load_tokenizer
from edgerun.weights import ResidentStore

EMBEDDED = Path(edgerun.__file__).parent / "embedded"
TALES = Path(__file__).parent / "tales"
NAMES = ("tales-moe", "tales-draft")
TIE = 0.25  # of a logit; a smaller lead may be turned over by rounding, the more so where it changes the routing
# Of the 24 recorded prompts, those with the largest leads whose 100 tokens came out equal. The others part at a tie.
AGREED = {
    "tales-moe": (
        "a small mouse found",
        "about a fox and a lantern",
        "a boat, a girl and a fish",
        "about a train",
        "The wolf came to the door",
    ),
    "tales-draft": (
        "about a fox and a lantern",
        "about a bird?",
        "Please tell me about a cat",
        "a frog and a pond",
        "a small mouse found",
    ),
}
PACKAGE_LIMIT_BYTES = 24 << 20


def golden(name: str) -> dict[str, Any]:
    return json.loads((TALES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=NAMES)
def model(request, kernels):
    gguf = open_gguf(EMBEDDED / f"{request.param}.gguf")
    spec = load_spec(gguf)
    return request.param, Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)


def logits_of(decoder: Decoder, ids: list[int]) -> np.ndarray:
    return decoder.forward(ids, decoder.new_cache(len(ids)), logits="all")


def losses(rows: np.ndarray, targets: list[int]) -> np.ndarray:
    top = rows.max(axis=1)
    sums = np.exp(rows - top[:, None]).sum(axis=1)
    return np.log(sums) + top - rows[np.arange(len(rows)), targets]


def test_golden_figures_are_of_the_shipped_files():
    for name in NAMES:
        shipped = (EMBEDDED / f"{name}.gguf").read_bytes()
        assert hashlib.sha256(shipped).hexdigest() == golden(name)["sha256"], "run tools/record_tales.py again"


def test_both_fit_in_the_package():
    assert sum((EMBEDDED / f"{name}.gguf").stat().st_size for name in NAMES) <= PACKAGE_LIMIT_BYTES


def test_the_two_share_a_tokenizer():
    first, second = (open_gguf(EMBEDDED / f"{name}.gguf").metadata for name in NAMES)
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template"):
        assert list(first[key]) == list(second[key])


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_llama_cpps(name):
    tokenizer = load_tokenizer(EMBEDDED / f"{name}.gguf")
    want = golden(name)["held_out_tokens"]
    text = (TALES / "held_out.txt").read_text(encoding="utf-8")
    assert tokenizer.encode(text)[: len(want)] == want


def test_logits_are_llama_cpps(model):
    name, decoder = model
    want = np.load(TALES / f"{name}.npy", allow_pickle=False)
    got = logits_of(decoder, golden(name)["held_out_tokens"][:64])[7::8]
    # Q8_0: both round activations to int8, see test_families.py
    assert np.linalg.norm(got - want) / np.linalg.norm(want) <= 2e-2


def test_perplexity_of_a_text_never_seen_is_llama_cpps(model):
    name, decoder = model
    ids = golden(name)["held_out_tokens"]
    loss = losses(logits_of(decoder, ids[:-1]).astype(np.float64), ids[1:]).mean()
    assert loss == pytest.approx(np.log(golden(name)["perplexity"]), abs=0.01)


def test_greedy_choices_are_llama_cpps_unless_tied(model, kernels):
    if kernels.name == "reference":
        pytest.skip("the reference keeps activations in f32, llama.cpp rounds them to int8: other ties, other texts")
    name, decoder = model
    tokenizer = load_tokenizer(EMBEDDED / f"{name}.gguf")
    for case in golden(name)["greedy"]:
        prompt = tokenizer.encode(case["prompt"])
        rows = logits_of(decoder, prompt + case["ids"][:-1])[len(prompt) - 1 :]
        differs = rows.argmax(axis=1) != case["ids"]
        assert (np.array(case["leads"])[differs] < TIE).all(), case["prompt"]
        assert tokenizer.decode(case["ids"]) == case["text"]


def test_greedy_text_is_llama_cpps(model, kernels):
    if kernels.name == "reference":
        pytest.skip("the reference keeps activations in f32, llama.cpp rounds them to int8: other ties, other texts")
    name, decoder = model
    tokenizer = load_tokenizer(EMBEDDED / f"{name}.gguf")
    cases = {case["prompt"]: case for case in golden(name)["greedy"]}
    for part in AGREED[name]:
        (case,) = (cases[prompt] for prompt in cases if part in prompt)
        cache = decoder.new_cache(256)
        row = decoder.forward(tokenizer.encode(case["prompt"]), cache)[0]
        ids: list[int] = []
        while len(ids) < 100:
            ids.append(int(row.argmax()))
            row = decoder.forward(ids[-1:], cache)[0]
        assert ids == case["ids"], case["prompt"]
