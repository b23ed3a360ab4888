"""Text as tokens arrive, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Container, Iterable
from typing import Protocol


class _Decoding(Protocol):
    add_space_prefix: bool

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class StreamDecoder:
    """Turns ids into text one at a time: the pieces, joined, are `tokenizer.decode` of all ids.

    `prompt` are ids that came before and are not to be shown: a reply that continues a SentencePiece text
    keeps its leading space, a text that begins loses it. Bytes that can no longer become a character give
    U+FFFD. `skip_special` leaves control tokens out, but for those in `shown`. One decoder serves one text.
    """

    def __init__(
        self,
        tokenizer: _Decoding,
        *,
        prompt: Iterable[int] = (),
        skip_special: bool = False,
        shown: Container[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._shown = shown
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.add_space_prefix
        for token_id in prompt:
            if not self._at_start:
                break
            self._at_start = tokenizer.is_special(token_id) or not tokenizer.token_bytes(token_id)

    def push(self, token_id: int) -> str:
        """The characters that this token completes; often one word, sometimes nothing."""
        special = self._tokenizer.is_special(token_id)
        if special and self._skip_special and token_id not in self._shown:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        if self._at_start and not special and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left of a character that was never completed."""
        return self._utf8.decode(b"", True)
