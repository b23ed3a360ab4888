"""A GGUF's vocabulary: tokens, their kinds and scores, and which ids are special, checked as it is read.

Keys and defaults follow llama.cpp (src/llama-vocab.cpp), so that ids agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UnsupportedError
from edgerun.text.metadata_values import all_numbers, numbers, scalar, strings
from edgerun.text.pretokenizers import find_pretokenizer
from edgerun.text.special_tokens import Attr, end_of_generation, special_ids, strip_rules
from edgerun.text.splitting import PreTokenizer

if TYPE_CHECKING:
    from edgerun.formats.gguf.metadata import Metadata

_SUPPORTED = '"llama" (SentencePiece), "gpt2" (byte-level BPE) and "gemma4"'
_OTHER_MODELS = {
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV",
    "plamo2": "PLaMo-2",
    "whitespace": "whitespace",
    "hybriddna": "DNA",
}

# What CPython takes for a token: a string with its places in two lists, a number, and what arrays hold of it; later its
# bytes and another number. For a merge: a string with its places; later its rank, and what the tokenizers library
# takes while it is built. What dictionaries take comes on top.
_LOADED_TOKEN_BYTES = 130
_LATER_TOKEN_BYTES = 80
_LOADED_MERGE_BYTES = 84
_LATER_MERGE_BYTES = 560
_WIDEST = 4  # bytes of a character in a string with one beyond U+FFFF
_WORDS_BYTES = 12 << 20  # words that are remembered with their ids (see merging)

_LLAMA_3_TURN_END = 128_009

_ATTR_OF_TYPE = np.array(  # tokenizer.ggml.token_type 0..6
    [
        Attr.UNDEFINED,
        Attr.NORMAL,
        Attr.UNKNOWN,
        Attr.CONTROL,
        Attr.USER_DEFINED,
        Attr.UNUSED,
        Attr.BYTE,
    ],
    dtype=np.uint8,
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that a tokenizer needs to know. `attrs` (n_tokens,) u8 of Attr; `scores` (n_tokens,) f32.

    `suppressed_ids`: tokens that the model must never choose. `notices`: what is odd about the file, for its user.
    """

    model: str
    pre: PreTokenizer | None  # None: SentencePiece
    tokens: list[str]
    ids: dict[str, int]
    attrs: NDArray[np.uint8]
    scores: NDArray[np.float32]
    merges: list[str]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    suppressed_ids: frozenset[int] = frozenset()
    notices: tuple[str, ...] = ()


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that GGUF `metadata` describes.

    Raises UnsupportedError for a kind of tokenizer that edgerun does not run (or none at all), and
    FormatError for metadata that contradicts itself.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise UnsupportedError(f"the file has no tokenizer; edgerun runs {_SUPPORTED}")
    if not isinstance(model, str):
        raise FormatError(f"tokenizer.ggml.model must be a string, got {type(model).__name__}")
    if model in ("none", "no_vocab"):
        raise UnsupportedError(f"the file has no tokenizer; edgerun runs {_SUPPORTED}")
    if model not in ("llama", "gpt2", "gemma4"):
        name = _OTHER_MODELS.get(model, model)
        raise UnsupportedError(f"the file has a {name} tokenizer ({model!r}); edgerun runs {_SUPPORTED}")
    pre = None
    if model != "llama":
        named = "gemma4" if model == "gemma4" else scalar(metadata, "tokenizer.ggml.pre", str, "")
        pre = find_pretokenizer(named)

    tokens = strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise FormatError("tokenizer.ggml.tokens is missing or empty: there is no vocabulary")
    notices: list[str] = []
    if pre is not None and pre.name == "default" and _is_llama_3(tokens):
        pre = find_pretokenizer("llama-bpe")
        notices.append("tokenizer.ggml.pre is missing, as in the first files of Llama 3: text is split as its is")
    ids = _index(tokens)
    scores = numbers(metadata, "tokenizer.ggml.scores", len(tokens), np.float32)
    if np.isnan(scores).any():
        raise FormatError("tokenizer.ggml.scores holds a score that is not a number")
    attrs = _attrs(metadata, len(tokens))
    merges: list[str] = []
    if pre is not None:
        if "tokenizer.ggml.merges" not in metadata:
            raise FormatError("tokenizer.ggml.merges is missing: a BPE tokenizer cannot do without")
        merges = strings(metadata, "tokenizer.ggml.merges")

    special = special_ids(metadata, model, pre, len(tokens), notices)
    eog_ids = end_of_generation(metadata, ids, attrs, special)
    strip_rules(metadata, tokens, ids, attrs)
    add_bos = scalar(metadata, "tokenizer.ggml.add_bos_token", bool, pre is None or pre.add_bos)
    add_eos = scalar(metadata, "tokenizer.ggml.add_eos_token", bool, False)
    if pre is not None and pre.always_bos:
        add_bos = True  # Gemma 4's files say otherwise, wrongly
    for wanted, name in ((add_bos, "bos"), (add_eos, "eos")):
        if wanted and special[name] is None:
            raise FormatError(f"tokenizer.ggml.add_{name}_token is true, but there is no {name} token")
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        ids=ids,
        attrs=attrs,
        scores=scores,
        merges=merges,
        bos_id=special["bos"],
        eos_id=special["eos"],
        unknown_id=special["unknown"],
        eog_ids=eog_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=scalar(metadata, "tokenizer.ggml.add_space_prefix", bool, pre is None),
        suppressed_ids=_suppressed(metadata, len(tokens)),
        notices=tuple(notices),
    )


@dataclass(frozen=True, slots=True)
class VocabularyBytes:
    """What a file's vocabulary takes at most: once it is `loaded`, and what using it adds `later`."""

    loaded: int
    later: int


def vocabulary_bytes(metadata: Metadata) -> VocabularyBytes:
    """Known from the header alone, before anything is decoded: some 40 bytes for each byte that the strings take in
    the file where they are the shortest that there are, 20 in ordinary files."""
    n_tokens, token_bytes = _strings_size(metadata, "tokenizer.ggml.tokens")
    n_merges, merge_bytes = _strings_size(metadata, "tokenizer.ggml.merges")
    return VocabularyBytes(
        loaded=_LOADED_TOKEN_BYTES * n_tokens
        + _LOADED_MERGE_BYTES * n_merges
        + _WIDEST * (token_bytes + merge_bytes)
        + _dict_bytes(n_tokens),
        later=_LATER_TOKEN_BYTES * n_tokens
        + _LATER_MERGE_BYTES * n_merges
        + token_bytes
        + _dict_bytes(n_tokens)
        + _dict_bytes(n_merges)
        + _WORDS_BYTES,
    )


def _dict_bytes(n: int) -> int:
    """Of a dictionary of `n` keys while it grows: its size doubles when two thirds are in use."""
    places = 8
    while places * 2 // 3 < n:
        places *= 2
    return 30 * places


def _strings_size(metadata: Metadata, key: str) -> tuple[int, int]:
    """(strings, bytes of their text)."""
    if key not in metadata:
        return 0, 0
    n_bytes = metadata.strings_bytes(key)
    count = metadata.kind(key)[1] if n_bytes else 0
    return count, n_bytes - 8 * count


def _suppressed(metadata: Mapping[str, Any], count: int) -> frozenset[int]:
    """Tokens that the model must never choose (Gemma 4's, for images and sounds). Ids beyond the vocabulary are left
    out, as llama.cpp does."""
    key = "tokenizer.ggml.suppress_tokens"
    if metadata.get(key) is None:
        return frozenset()
    given = all_numbers(metadata, key, np.float64)
    return frozenset(int(token_id) for token_id in given if 0 <= token_id < count)


def _is_llama_3(tokens: list[str]) -> bool:
    return len(tokens) > _LLAMA_3_TURN_END and tokens[_LLAMA_3_TURN_END] == "<|eot_id|>"


def _index(tokens: list[str]) -> dict[str, int]:
    """Text to id. Empty tokens get a name in place, for text never becomes one."""
    if "" in tokens:
        for i, text in enumerate(tokens):
            tokens[i] = text or f"[EMPTY_{i}]"
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):
        twice = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise FormatError(f"the token {tokens[twice]!r} has two ids: {twice} and {ids[tokens[twice]]}")
    return ids


def _attrs(metadata: Mapping[str, Any], count: int) -> NDArray[np.uint8]:
    if metadata.get("tokenizer.ggml.token_type") is None:
        return np.full(count, Attr.NORMAL, np.uint8)
    types = numbers(metadata, "tokenizer.ggml.token_type", count, np.int64)
    types[(types < 0) | (types >= len(_ATTR_OF_TYPE))] = 0
    return _ATTR_OF_TYPE[types]
