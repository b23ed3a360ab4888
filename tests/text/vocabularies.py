"""Small vocabularies for tests, as GGUF metadata: byte-level BPE and SentencePiece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
BYTES = {byte: chr(byte) for byte in _SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}


def shown(text: str) -> str:
    """Text as byte-level BPE writes it."""
    return "".join(BYTES[byte] for byte in text.encode())


def bpe(
    merges: Sequence[str] = ("h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w", "o r", "Ġw or"),
    added: Mapping[str, int] | None = None,
    pre: str = "gpt-2",
    **keys: Any,
) -> dict[str, Any]:
    """All bytes, what `merges` make, then `added` tokens with their types."""
    tokens = [BYTES[byte] for byte in range(256)]
    for merge in merges:
        made = merge.replace(" ", "")
        if made not in tokens:
            tokens.append(made)
    types = [NORMAL] * len(tokens)
    for text, kind in (added or {"<|end|>": CONTROL, "<|tool|>": USER_DEFINED}).items():
        tokens.append(text)
        types.append(kind)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def sentencepiece(
    pieces: Mapping[str, float] | None = None, added: Mapping[str, int] | None = None, **keys: Any
) -> dict[str, Any]:
    """<unk>, <s>, </s>, all bytes, then `pieces` with their scores, then `added` tokens."""
    if pieces is None:
        pieces = {
            "▁hello": -1,
            "▁world": -2,
            "▁he": -3,
            "llo": -4,
            "▁w": -5,
            "or": -6,
            "ld": -7,
            "▁h": -8,
            "▁wor": -8.5,
            "ll": -9,
            "▁▁": -10,
            **{char: -20.0 for char in "▁helowrd"},
        }
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [float(score) for score in pieces.values()]
    for text, kind in (added or {"<|user|>": CONTROL}).items():
        tokens.append(text)
        types.append(kind)
        scores.append(0.0)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
