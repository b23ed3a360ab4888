"""SentencePiece: scores, byte fallback, the space in front."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.text import load_tokenizer

from .vocabularies import sentencepiece


def texts(tokenizer, text, **options):
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, **options)]


def test_the_highest_score_joins_first_and_a_space_stands_in_front():
    tokenizer = load_tokenizer(sentencepiece())
    assert texts(tokenizer, "hello world") == ["<s>", "▁hello", "▁world"]


def test_a_token_that_no_pair_of_tokens_makes_is_never_reached():
    pieces = {"abc": -1.0, "a": -5.0, "b": -5.0, "c": -5.0}
    tokenizer = load_tokenizer(sentencepiece(pieces, add_space_prefix=False))
    assert texts(tokenizer, "abc", add_special=False) == ["a", "b", "c"]


def test_the_space_in_front_is_optional():
    tokenizer = load_tokenizer(sentencepiece(add_space_prefix=False))
    assert texts(tokenizer, "he", add_special=False) == ["h", "e"]
    assert tokenizer.decode(tokenizer.encode(" he", add_special=False)) == " he"


def test_unknown_characters_become_bytes():
    tokenizer = load_tokenizer(sentencepiece())
    assert texts(tokenizer, "é\n", add_special=False) == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]


def test_without_byte_tokens_they_become_the_unknown_token():
    metadata = sentencepiece()
    metadata["tokenizer.ggml.tokens"] = [
        f"[{text}]" if text.startswith("<0x") else text for text in metadata["tokenizer.ggml.tokens"]
    ]
    tokenizer = load_tokenizer(metadata)
    assert texts(tokenizer, "hé", add_special=False) == ["▁h", "<unk>", "<unk>"]


def test_ties_go_to_the_left():
    pieces = {"ab": -1.0, "bc": -1.0, "a": -5.0, "b": -5.0, "c": -5.0, "▁": -5.0}
    tokenizer = load_tokenizer(sentencepiece(pieces, add_space_prefix=False))
    assert texts(tokenizer, "abc", add_special=False) == ["ab", "c"]
    assert texts(tokenizer, "abcbc", add_special=False) == ["ab", "c", "bc"]


def test_tokens_may_reach_across_spaces():
    pieces = {"a▁": -1.0, "a▁b": -2.0, "a": -5.0, "b": -5.0, "▁": -5.0}
    tokenizer = load_tokenizer(sentencepiece(pieces, add_space_prefix=False))
    assert texts(tokenizer, "a b b a b", add_special=False) == ["a▁b", "▁", "b", "▁", "a▁b"]


def test_begin_and_end_of_text():
    tokenizer = load_tokenizer(sentencepiece(add_eos_token=True))
    assert tokenizer.encode("") == [1, 2]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.add_bos
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.text("helo wrd", max_size=60))
def test_decode_gives_the_text_back(text):
    tokenizer = load_tokenizer(sentencepiece())
    expected = text.replace("▁", " ")  # the two are one to SentencePiece
    for add_special in (False, True):
        ids = tokenizer.encode(text, add_special=add_special, parse_special=False)
        assert tokenizer.decode(ids, skip_special=True) == expected


@pytest.mark.parametrize("text", ["hello" * 5000, " " * 20_000, "中" * 5000])
def test_long_runs(text):
    tokenizer = load_tokenizer(sentencepiece())
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
