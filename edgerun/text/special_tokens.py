"""Which tokens are special: those that metadata names, those known by their text, and after which a reply ends.

Rules and defaults follow llama.cpp (src/llama-vocab.cpp), so that ids agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError
from edgerun.text.metadata_values import all_numbers, scalar
from edgerun.text.splitting import PreTokenizer

UNSET_ID = 0xFFFFFFFF  # -1 as the unsigned number that converters write for "no such token"

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
    "<|eot|>",
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
_ENDS = "tokenizer.ggml.eos_token_ids"
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


def special_ids(
    metadata: Mapping[str, Any], model: str, pre: PreTokenizer | None, count: int, notices: list[str]
) -> dict[str, int | None]:
    """Ids of special tokens by their stem ("bos", "eos", "eot", "fim_pad", ...), of `count` tokens.

    One that the vocabulary does not have is as if the file did not name it; `notices` tells. FormatError for what is no
    number.
    """
    found: dict[str, int | None] = {"bos": None, "eos": None, "unknown": None}
    if model == "llama":
        found = {"bos": 1, "eos": 2, "unknown": 0}
    elif model == "gpt2" and pre is not None:
        found = {"bos": None if pre.no_default_bos else 11, "eos": 11, "unknown": None}
    found = {stem: i if i is not None and i < count else None for stem, i in found.items()}
    for stem in ("bos", "eos", "eot", "eom", "unknown", *_FIM_TEXTS):
        found.setdefault(stem, None)
        for key_stem in (stem, _FIM_OLD_KEYS.get(stem)):
            key = f"tokenizer.ggml.{key_stem}_token_id"
            value = None if key_stem is None else metadata.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise FormatError(f"{key} must be a whole number, got {type(value).__name__}")
            if 0 <= value < count:
                found[stem] = int(value)
            elif value not in (UNSET_ID, -1):
                notices.append(f"{key} is {value}, but the vocabulary has {count} tokens: it is left out")
    return found


def end_of_generation(
    metadata: Mapping[str, Any], ids: dict[str, int], attrs: NDArray[np.uint8], special: dict[str, int | None]
) -> frozenset[int]:
    """Ids after which a generation is over: also those that Ollama's converter lists. Marks tokens known by their text
    as control tokens."""

    def by_text(texts: Sequence[str]) -> list[int]:
        return sorted(ids[text] for text in texts if text in ids)

    for stem, texts in (("eot", _EOT_TEXTS), ("eom", _EOM_TEXTS), *_FIM_TEXTS.items()):
        if special[stem] is None and (known := by_text(texts)):
            special[stem] = known[0]
            attrs[known[0]] |= Attr.CONTROL
    eog = set(by_text(_EOG_TEXTS))
    attrs[list(eog)] |= np.uint8(Attr.CONTROL)
    if metadata.get(_ENDS) is not None:
        eog |= {int(each) for each in all_numbers(metadata, _ENDS, np.float64) if 0 <= each < len(attrs)}
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
    if is_eog("<|tool_response>", "<|plamo:eos|>") and is_eog("</s>"):
        eog.discard(ids["</s>"])  # an HTML tag there
        attrs[ids["</s>"]] = Attr.NORMAL
    return frozenset(eog)


def strip_rules(metadata: Mapping[str, Any], tokens: list[str], ids: dict[str, int], attrs: NDArray[np.uint8]) -> None:
    """Models whose special tokens swallow whitespace beside them; the files do not say, llama.cpp knows."""
    name = scalar(metadata, "general.name", str, "").lower()
    pre = scalar(metadata, "tokenizer.ggml.pre", str, "")
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
