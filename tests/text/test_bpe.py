"""Byte-level BPE: merges, families, round trips."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.text import load_tokenizer
from edgerun.text.merging import BpeMerger, merge_symbols
from edgerun.text.pretokenizers import PRETOKENIZERS
from edgerun.text.vocabulary import read_vocabulary

from .vocabularies import bpe, shown

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.text(
    "aB'sré1² \n\r\t.~中😀\u0301\u3000\x85", max_size=40
)


def texts(tokenizer, ids):
    return [tokenizer.token_text(i) for i in ids]


def test_merges_go_by_rank_and_spaces_belong_to_words():
    tokenizer = load_tokenizer(bpe())
    assert texts(tokenizer, tokenizer.encode("hello hello wor", add_special=False)) == [
        "hello",
        "Ġhello",
        "Ġwor",
    ]


def test_what_no_merge_joins_stays_bytes():
    tokenizer = load_tokenizer(bpe())
    ids = tokenizer.encode("é😀", add_special=False)
    assert texts(tokenizer, ids) == list(shown("é😀"))
    assert tokenizer.decode(ids) == "é😀"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("llama-bpe", ["abc"]),
        ("glm4", ["abc"]),
        ("glm5", ["abc"]),
        ("chatglm-bpe", ["ab", "c"]),
        ("gpt-2", ["ab", "c"]),
    ],
)
def test_a_word_that_is_a_token_is_taken_whole_only_where_merges_are_ignored(pre, expected):
    metadata = bpe(["a b", "b c"], {"<|end|>": 3}, pre=pre)
    metadata["tokenizer.ggml.tokens"][256] = "abc"  # instead of what the first merge would make
    metadata["tokenizer.ggml.tokens"].append("ab")
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    tokenizer = load_tokenizer(metadata)
    assert texts(tokenizer, tokenizer.encode("abc", add_special=False)) == expected


def test_a_merge_that_makes_no_token_still_happens():
    # llama.cpp joins "a b" although "ab" is no token, so "b c" cannot join; then it falls back to bytes
    metadata = bpe(["a b", "b c"])
    metadata["tokenizer.ggml.tokens"][256] = "unrelated"
    tokenizer = load_tokenizer(metadata)
    assert texts(tokenizer, tokenizer.encode("abc", add_special=False)) == ["a", "b", "c"]


def test_bytes_without_a_token_are_left_out_and_do_not_join_their_neighbours():
    metadata = bpe(["a b"])
    metadata["tokenizer.ggml.tokens"][ord("x")] = "no x"
    tokenizer = load_tokenizer(metadata)
    assert texts(tokenizer, tokenizer.encode("axb ab", add_special=False)) == ["a", "b", "Ġ", "ab"]


def test_the_leftmost_pair_goes_first_among_equals():
    assert list(merge_symbols("aaaaa", lambda left, _, right: 0 if right - left == 2 else None)) == ["aa", "aa", "a"]


TOKENS = ["ab", "bc", "ca", "aa", "abc", "bca", "aaa", "aaaa", "abab", "bcbc"]


@given(st.text("abc", max_size=30), st.lists(st.integers(0, 5), min_size=len(TOKENS), max_size=len(TOKENS)))
def test_merging_agrees_with_trying_every_pair(text, ranks):
    known = dict(zip(TOKENS, ranks, strict=True))
    slow = list(text)
    while True:
        ranked = [(known.get(left + right), i) for i, (left, right) in enumerate(zip(slow, slow[1:], strict=False))]
        ranked = [entry for entry in ranked if entry[0] is not None]
        if not ranked:
            break
        _, i = min(ranked)
        slow[i : i + 2] = [slow[i] + slow[i + 1]]
    assert list(merge_symbols(text, lambda left, _, right: known.get(text[left:right]))) == slow


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
@given(text=TEXTS)
@settings(max_examples=30)
def test_words_joined_are_the_text(pre, text):
    words = list(PRETOKENIZERS[pre].split(text))
    assert "".join(words) == text
    assert all(words)


MERGES = [f"{left} {right}" for left in ("a", "b", "ab", "aa", "Ġ") for right in ("a", "b", "ab")]


@given(merges=st.permutations(MERGES), word=st.text("ab \n", max_size=12))
def test_the_library_merges_as_we_do(merges, word):
    vocabulary = read_vocabulary(bpe(merges, pre="superbpe"))
    ours = BpeMerger(vocabulary, library_after_chars=1 << 30)
    library = BpeMerger(vocabulary, library_after_chars=-1)
    assert library.encode(word) == ours.encode(word)
    assert not word or library._model
    assert not ours._model


@pytest.mark.parametrize("merges", [["a b", "no t"], ["a b", "a b"], ["ab"], [" a b"]])
def test_what_the_library_would_refuse_is_merged_without_it(merges):
    metadata = bpe(["a b"])
    metadata["tokenizer.ggml.merges"] = ["a b", *merges]
    merger = BpeMerger(read_vocabulary(metadata), library_after_chars=-1)
    assert merger.encode("ab") == [256]
    assert merger._model is False


def test_tokens_may_be_parts_of_characters():
    metadata = bpe()
    metadata["tokenizer.ggml.tokens"].append(b"\xc3".decode("utf-8", "surrogateescape"))
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == b"\xc3"
    assert texts(tokenizer, tokenizer.encode("hello", add_special=False)) == ["hello"]


@given(text=TEXTS)
def test_decode_gives_the_text_back(text):
    tokenizer = load_tokenizer(bpe(pre="qwen2"))
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters():
    tokenizer = load_tokenizer(bpe())
    assert tokenizer.decode(tokenizer.encode("a\ud800b", add_special=False)) == "a\ufffdb"


def test_long_runs_are_quick():
    tokenizer = load_tokenizer(bpe())
    text = "hello" * 20_000 + " " * 20_000 + "\n" * 20_000
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


SAMPLE = "I'm HERE'S 12345 it's\r\n\n  x_y(中文é)~ ok "


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "I|'m| HERE|'|S| 12345| it|'s|\r\n\n | x|_|y|(|中文é|)~| ok| "),
        ("starcoder", "I|'m| HERE|'|S| |1|2|3|4|5| it|'s|\r\n\n | x|_|y|(|中文é|)~| ok| "),
        ("llama-bpe", "I|'m| HERE|'S| |123|45| it|'s|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("qwen2", "I|'m| HERE|'S| |1|2|3|4|5| it|'s|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("tekken", "I|'m| HERE|'S| |1|2|3|4|5| it|'s|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("gpt-4o", "I'm| HERE'S| |123|45| it's|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("deepseek-llm", "I|'|m| HERE|'|S| |12345| it|'|s|\r|\n|\n| | x|_|y|(|中文|é|)~| ok| "),
        ("deepseek-coder", "I|'|m| HERE|'|S| |1|2|3|4|5| it|'|s|\r|\n|\n| | x|_|y|(|中文|é|)|~| ok| "),
        ("deepseek-v3", "I|'m| HERE|'S| |123|45| it|'s|\r\n\n| | x|_y|(|中文|é|)~| ok| "),
        ("falcon", "I|'|m| HERE|'|S| |123|45| it|'|s|\r\n\n | x|_|y|(|中文é|)~| ok| "),
        ("default", "I|'|m| HERE|'|S| |123|45| it|'|s|\r\n\n | x|_|y|(|中文é|)~| ok| "),
        ("superbpe", "I'm HERE'S |12|345| it's\r\n\n  x_y(中文é)~ ok "),
        ("afmoe", "I|'m| HERE|'S| |12|345| it|'s|\r\n\n| | x|_y|(|中文|é|)~| ok| "),
        ("kimi-k2", "I'm| HERE'S| |123|45| it's|\r\n\n| | x|_y|(|中文|é|)~| ok| "),
        ("tiny_aya", "I'm| HERE'S| |12|345| it's|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("spark2_5", "I|'m| HERE|'S| |1|2|3|4|5| it|'s|\r|\n|\n| | x|_y|(|中文|é|)~| ok| "),
        ("granite-embed-multi-97m", "I'm| HERE'S| |123|45| it's|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("ufakzeka", "I|'m| HERE|'S| |1|2|3|4|5| it|'s|\r\n\n| | x|_y|(中文é|)~| ok| "),
        ("chameleon", "I|'|m| HERE|'|S| |1|2|3|4|5| it|'|s|\r|\n|\n|  |x|_|y|(|中文é|)|~| ok| "),
    ],
)
def test_words_of_each_family(pre, expected):
    assert list(PRETOKENIZERS[pre].split(SAMPLE)) == expected.split("|")


@pytest.mark.parametrize(
    ("alias", "name"),
    [("llama3", "llama-bpe"), ("llama-v3", "llama-bpe"), ("mpt", "gpt-2"), ("olmo", "gpt-2")]
    + [(name, "starcoder") for name in ("refact", "command-r", "smollm")]
    + [("deepseek-r1-qwen", "qwen2"), ("stablelm2", "qwen2"), ("cohere2moe", "tiny_aya"), ("glm5", "glm4")],
)
def test_aliases_share_a_family(alias, name):
    assert PRETOKENIZERS[alias].rules == PRETOKENIZERS[name].rules
