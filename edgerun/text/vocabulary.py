"""A GGUF's vocabulary: tokens, their kinds and scores, and which ids are special, checked as it is read.

Keys and defaults follow llama.cpp (src/llama-vocab.cpp), so that ids agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UnsupportedError
from edgerun.text.pretokenizers import PreTokenizer, find_pretokenizer

if TYPE_CHECKING:
    from edgerun.formats.gguf.metadata import Metadata

_T = TypeVar("_T")
_D = TypeVar("_D", bound=np.generic)

UNSET_ID = 0xFFFFFFFF  # -1 as the unsigned number that converters write for "no such token"

_SUPPORTED = '"llama" (SentencePiece), "gpt2" (byte-level BPE) and "gemma4"'
_OTHER_MODELS = {
    "bert": "WordPiece",
    "t5": "Unigram",
    "rwkv": "RWKV",
    "plamo2": "PLaMo-2",
    "whitespace": "whitespace",
    "hybriddna": "DNA",
}

# Tokens that are known by their text, where the file has no key for them.
_EOT_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
_EOM_TEXTS = ("<|eom_id|>",)
_EOG_TEXTS = (
    *_EOT_TEXTS,
    *_EOM_TEXTS,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
_FIM_TEXTS = {  # key stem: texts; pad, rep and sep also end a generation
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_FIM_OLD_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss
_NOT_RSTRIPPED = ("<unk>", "<s>", "<|endoftext|>")  # phi-3


class Attr(IntFlag):
    """What kind of token it is, and which whitespace around it belongs to it."""

    UNDEFINED = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32
    LSTRIP = 64
    RSTRIP = 128


# What CPython takes for a token: a string with its places in two lists, a number, and what arrays hold of it; later its
# bytes and another number. For a merge: a string with its places; later its rank, and what the tokenizers library
# takes while it is built. What dictionaries take comes on top.
_LOADED_TOKEN_BYTES = 130
_LATER_TOKEN_BYTES = 80
_LOADED_MERGE_BYTES = 84
_LATER_MERGE_BYTES = 560
_CHECKED_TOGETHER = 256
_WIDEST = 4  # bytes of a character in a string with one beyond U+FFFF
_WORDS_BYTES = 12 << 20  # words that are remembered with their ids (see merging)

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
    """Everything that a tokenizer needs to know. `attrs` (n_tokens,) u8 of Attr; `scores` (n_tokens,) f32."""

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
        named = "gemma4" if model == "gemma4" else _scalar(metadata, "tokenizer.ggml.pre", str, "")
        pre = find_pretokenizer(named)

    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise FormatError("tokenizer.ggml.tokens is missing or empty: there is no vocabulary")
    ids = _index(tokens)
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), np.float32)
    if np.isnan(scores).any():
        raise FormatError("tokenizer.ggml.scores holds a score that is not a number")
    attrs = _attrs(metadata, len(tokens))
    merges: list[str] = []
    if pre is not None:
        if "tokenizer.ggml.merges" not in metadata:
            raise FormatError("tokenizer.ggml.merges is missing: a BPE tokenizer cannot do without")
        merges = _strings(metadata, "tokenizer.ggml.merges")

    special = _special_ids(metadata, model, pre, ids)
    eog_ids = _end_of_generation(ids, attrs, special)
    _strip_rules(metadata, tokens, ids, attrs)
    add_bos = _scalar(metadata, "tokenizer.ggml.add_bos_token", bool, pre is None or pre.add_bos)
    add_eos = _scalar(metadata, "tokenizer.ggml.add_eos_token", bool, False)
    if pre is not None and pre.name == "gemma4":
        add_bos = True  # its files say otherwise, wrongly
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
        add_space_prefix=_scalar(metadata, "tokenizer.ggml.add_space_prefix", bool, pre is None),
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


def _scalar(metadata: Mapping[str, Any], key: str, kind: type[_T], default: _T) -> _T:
    value = metadata.get(key)
    if value is None:
        return default
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, kind):
        raise FormatError(f"{key} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise FormatError(f"{key} must be an array of strings, got {type(value).__name__}")
    values = list(value)  # the empty ones get names in it
    for i, text in enumerate(values):
        if not isinstance(text, str):
            raise FormatError(f"{key}[{i}] must be a string, got {type(text).__name__}")
    try:
        for start in range(0, len(values), _CHECKED_TOGETHER):  # all at once would take as much as they do again
            "".join(values[start : start + _CHECKED_TOGETHER]).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"{key} holds text that is no Unicode: {error}") from error
    return values


def _numbers(metadata: Mapping[str, Any], key: str, count: int, dtype: type[_D]) -> NDArray[_D]:
    """`count` numbers; zeros when the key is missing. More than needed is cut, as llama.cpp does."""
    value = metadata.get(key)
    if value is None:
        return np.zeros(count, dtype)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FormatError(f"{key} must be an array of numbers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise FormatError(f"{key} must be an array of numbers, got {type(value).__name__}")
    if len(array) < count:
        raise FormatError(f"{key} has {len(array)} entries for {count} tokens")
    return array[:count].astype(dtype)


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
    types = _numbers(metadata, "tokenizer.ggml.token_type", count, np.int64)
    types[(types < 0) | (types >= len(_ATTR_OF_TYPE))] = 0
    return _ATTR_OF_TYPE[types]


def _special_ids(
    metadata: Mapping[str, Any], model: str, pre: PreTokenizer | None, ids: dict[str, int]
) -> dict[str, int | None]:
    """Ids of special tokens by their stem ("bos", "eos", "eot", "fim_pad", ...)."""
    found: dict[str, int | None] = {"bos": None, "eos": None, "unknown": None}
    if model == "llama":
        found = {"bos": 1, "eos": 2, "unknown": 0}
    elif model == "gpt2" and pre is not None:
        found = {"bos": None if pre.no_default_bos else 11, "eos": 11, "unknown": None}
    count = len(ids)
    found = {stem: i if i is not None and i < count else None for stem, i in found.items()}
    for stem in ("bos", "eos", "eot", "eom", "unknown", *_FIM_TEXTS):
        found.setdefault(stem, None)
        for key_stem in (stem, _FIM_OLD_KEYS.get(stem)):
            if key_stem is None:
                continue
            key = f"tokenizer.ggml.{key_stem}_token_id"
            value = metadata.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise FormatError(f"{key} must be a whole number, got {type(value).__name__}")
            if value in (UNSET_ID, -1):
                continue
            if 0 <= value < count:
                found[stem] = int(value)
            elif not stem.startswith("fim"):
                raise FormatError(f"{key} is {value}, but the vocabulary has {count} tokens")
    return found


def _end_of_generation(ids: dict[str, int], attrs: NDArray[np.uint8], special: dict[str, int | None]) -> frozenset[int]:
    """Ids after which a generation is over. Marks tokens known by their text as control tokens."""

    def by_text(texts: Sequence[str]) -> list[int]:
        return sorted(ids[text] for text in texts if text in ids)

    for stem, texts in (("eot", _EOT_TEXTS), ("eom", _EOM_TEXTS), *_FIM_TEXTS.items()):
        if special[stem] is None and (known := by_text(texts)):
            special[stem] = known[0]
            attrs[known[0]] |= Attr.CONTROL
    eog = set(by_text(_EOG_TEXTS))
    attrs[list(eog)] |= np.uint8(Attr.CONTROL)
    attrs[by_text(_ALWAYS_SHOWN)] = Attr.USER_DEFINED
    for stem in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"):
        token_id = special[stem]
        if token_id is not None:
            eog.add(token_id)

    def is_eog(*texts: str) -> bool:
        return any(ids.get(text) in eog for text in texts)

    if is_eog("<|end|>") and is_eog("<|call|>", "<|calls|>") and is_eog("<|return|>", "<|flush|>"):
        eog.discard(ids["<|end|>"])  # ends a message there, not the reply
        attrs[ids["<|end|>"]] = Attr.USER_DEFINED
    if is_eog("<|tool_response>") and is_eog("</s>"):
        eog.discard(ids["</s>"])  # an HTML tag there
        attrs[ids["</s>"]] = Attr.NORMAL
    return frozenset(eog)


def _strip_rules(metadata: Mapping[str, Any], tokens: list[str], ids: dict[str, int], attrs: NDArray[np.uint8]) -> None:
    """Models whose special tokens swallow whitespace beside them; the files do not say, llama.cpp knows."""
    name = _scalar(metadata, "general.name", str, "").lower()
    pre = _scalar(metadata, "tokenizer.ggml.pre", str, "")
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        if "<mask>" in ids:
            attrs[ids["<mask>"]] |= Attr.LSTRIP
    elif "phi-3" in name or "phi3" in name:
        added = Attr.CONTROL | Attr.USER_DEFINED | Attr.UNKNOWN
        attrs[(attrs & np.uint8(added)) != 0] |= np.uint8(Attr.RSTRIP)
        if "</s>" in ids:
            attrs[ids["</s>"]] |= Attr.RSTRIP
        for text in _NOT_RSTRIPPED:
            if text in ids:
                attrs[ids[text]] &= 0xFF ^ Attr.RSTRIP
    elif "modern-bert" in name and "[MASK]" in ids:
        attrs[ids["[MASK]"]] |= Attr.LSTRIP
