"""Metadata that is malformed, hostile, or of a kind that edgerun does not run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.errors import EdgerunError, FormatError, UnsupportedError
from edgerun.text import load_tokenizer

from .vocabularies import bpe, sentencepiece

KEYS = sorted(set(bpe()) | set(sentencepiece()) | {"tokenizer.ggml.add_bos_token", "general.name"})


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "something", None])
def test_kinds_that_edgerun_does_not_run(model):
    metadata = bpe()
    metadata["tokenizer.ggml.model"] = model
    with pytest.raises(UnsupportedError, match="SentencePiece.*byte-level BPE"):
        load_tokenizer(metadata)


def test_unknown_pretokenizers_are_named_with_those_that_there_are():
    with pytest.raises(UnsupportedError, match="'never-heard-of'.*llama-bpe.*qwen2"):
        load_tokenizer(bpe(pre="never-heard-of"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", 7, "must be a string"),
        ("pre", 3, "must be a str"),
        ("tokens", None, "missing or empty"),
        ("tokens", [], "missing or empty"),
        ("tokens", "abc", "array of strings"),
        ("tokens", 5, "array of strings"),
        ("tokens", ["a", 5], r"tokens\[1\] must be a string"),
        ("tokens", ["a", "\ud800"], "no Unicode"),
        ("tokens", ["a", "b", "a"], "'a' has two ids: 0 and 2"),
        ("token_type", [1], "1 entries for"),
        ("token_type", ["x"], "array of numbers"),
        ("token_type", 1, "array of numbers"),
        ("scores", [0.5], "1 entries for"),
        ("scores", [[0.5]], "array of numbers"),
        ("scores", [float("nan")] * 400, "not a number"),
        ("merges", None, "merges is missing"),
        ("merges", [1], r"merges\[0\]"),
        ("suppress_tokens", "all", "array of numbers"),
        ("suppress_tokens", [[1]], "array of numbers"),
        ("eos_token_id", "2", "whole number"),
        ("bos_token_id", True, "whole number"),
        ("add_bos_token", "yes", "must be a bool"),
        ("add_space_prefix", 1, "must be a bool"),
    ],
)
def test_wrong_metadata_is_refused_with_a_reason(key, value, message):
    metadata = bpe()
    key = f"tokenizer.ggml.{key}"
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(FormatError, match=message):
        load_tokenizer(metadata)


def test_begin_of_text_without_its_token():
    metadata = bpe((), pre="glm4", add_bos_token=True)
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.raises(FormatError, match="no bos token"):
        load_tokenizer(metadata)


@pytest.mark.parametrize(("key", "value"), [("bos", 10**6), ("eos", -7), ("eot", 400)])
def test_a_special_token_that_is_not_there_is_left_out_and_told(key, value):
    tokenizer = load_tokenizer(sentencepiece(**{f"{key}_token_id": value}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (1, 2, {2})
    (notice,) = tokenizer.notices
    assert f"{key}_token_id is {value}" in notice
    assert load_tokenizer(sentencepiece()).notices == ()


def test_an_id_that_is_unset_means_the_default():
    assert load_tokenizer(sentencepiece(bos_token_id=0xFFFFFFFF)).bos_id == 1


def test_more_scores_than_tokens_are_cut():
    metadata = sentencepiece()
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], np.float32(1))
    assert load_tokenizer(metadata).encode("he", add_special=False)


def test_empty_tokens_and_unknown_types_do_no_harm():
    metadata = bpe()
    metadata["tokenizer.ggml.tokens"][257] = ""
    metadata["tokenizer.ggml.token_type"][258] = 99
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.token_text(257) == "[EMPTY_257]"
    assert tokenizer.token_bytes(258) == b""
    assert tokenizer.decode(tokenizer.encode("hello there")) == "hello there"


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.text(max_size=4), max_size=6),
    st.lists(st.integers(-9, 9), max_size=6),
    st.just(np.zeros((2, 2), np.float32)),
    st.just(np.zeros(400, np.float32)),
    st.just(["a b"] * 3),
    st.just(b"bytes"),
)


@given(st.sampled_from([bpe, sentencepiece]), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_whatever_stands_in_the_metadata_gives_a_tokenizer_or_our_error(make, changes):
    metadata = make() | changes
    try:
        tokenizer = load_tokenizer(metadata)
    except EdgerunError:
        return
    text = "hello <|end|> wörld\n"
    assert isinstance(tokenizer.decode(tokenizer.encode(text)), str)
