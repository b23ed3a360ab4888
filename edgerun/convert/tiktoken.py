"""Vocabularies of tiktoken (Kimi): tokens as bytes, of which those of lower numbers are merged first -> GGUF's merges.

Source: llama.cpp's converter (conversion/deepseek.py), for what Kimi's is called.
"""

from __future__ import annotations

import base64
import binascii
from itertools import pairwise
from pathlib import Path

from edgerun.convert.vocabulary import TokenType, Vocabulary
from edgerun.errors import FormatError
from edgerun.text.characters import BYTE_CHARACTERS

_MOST_TOKENS = 1 << 20
_MOST_TOKEN_BYTES = 1 << 10
PRE = "kimi-k2"


def read_tiktoken(path: Path) -> Vocabulary:
    """A file with a token, in base64, and its number on every line. FormatError for others."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        text, _, rank = line.strip().partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
            value = int(rank)
        except (binascii.Error, ValueError):
            raise FormatError(f"{path}: line {number} is no token and its number") from None
        if not 0 <= value < _MOST_TOKENS or not 0 < len(token) <= _MOST_TOKEN_BYTES or token in ranks:
            raise FormatError(f"{path}: line {number} has an impossible token or number, or one that was there before")
        ranks[token] = value
    tokens = _in_order(ranks, path)
    merges = [pair for token in tokens if token is not None and (pair := _merge(ranks, token)) is not None]
    names = [f"[PAD{i}]" if token is None else _written(token) for i, token in enumerate(tokens)]
    types = [int(TokenType.UNUSED if token is None else TokenType.NORMAL) for token in tokens]
    return Vocabulary("gpt2", PRE, names, types, merges=merges)


def _in_order(ranks: dict[bytes, int], path: Path) -> list[bytes | None]:
    if not ranks or max(ranks.values()) > 2 * len(ranks) + 1024:
        raise FormatError(f"{path}: no tokens, or numbers far beyond them")
    tokens: list[bytes | None] = [None] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        if tokens[rank] is not None:
            raise FormatError(f"{path}: two tokens have the number {rank}")
        tokens[rank] = token
    return tokens


def _merge(ranks: dict[bytes, int], token: bytes) -> str | None:
    """The last merge that makes `token`, of what merges of lower numbers make of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, _MOST_TOKENS), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank >= ranks[token]:
            return None
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return None if len(parts) < 2 else f"{_written(parts[0])} {_written(parts[1])}"


def _written(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)
