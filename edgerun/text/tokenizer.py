"""Text to ids and back, with special tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np

from edgerun.errors import Cancelled, ContextLengthError, UsageError
from edgerun.events import never
from edgerun.text.characters import BYTE_OF_CHARACTER
from edgerun.text.merging import WORD_START, make_merger
from edgerun.text.special_tokens import Attr
from edgerun.text.vocabulary import Vocabulary

_C_SPACES = " \t\n\v\f\r"
_HIDDEN = int(Attr.CONTROL | Attr.UNKNOWN)
_PARTITIONING = int(Attr.CONTROL | Attr.UNKNOWN | Attr.USER_DEFINED)
_PREFIX_CHARS = 4


class Tokenizer:
    """A model's tokenizer: ids agree with llama.cpp's for any text. Thread-safe.

    `bos_id`, `eos_id`: begin and end of text, or None. `add_bos`, `add_eos`: whether `encode` puts them
    around the text. `eog_ids`: tokens after which a reply is over. `suppressed_ids`: tokens that must never be chosen.
    `notices`: what is odd about the file.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._merger = make_merger(vocabulary)
        self._attrs = vocabulary.attrs.tobytes()  # indexed by id, an int comes out: quicker than numpy
        self._pieces: dict[int, bytes] = {}
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.eog_ids = vocabulary.eog_ids
        self.suppressed_ids = vocabulary.suppressed_ids
        self.notices = vocabulary.notices
        self.add_space_prefix = vocabulary.pre is None and vocabulary.add_space_prefix
        special = np.flatnonzero(vocabulary.attrs & np.uint8(_PARTITIONING)).tolist()
        self._special: list[int] = sorted(special, key=lambda i: -len(_utf8(vocabulary.tokens[i])))
        self._special_by_prefix: dict[str, list[int]] = {}
        for order, token_id in enumerate(self._special):
            prefix = vocabulary.tokens[token_id][:_PREFIX_CHARS]
            self._special_by_prefix.setdefault(prefix, []).append(order)

    def __repr__(self) -> str:
        pre = self._vocabulary.pre
        return f"<Tokenizer {pre.name if pre else 'SentencePiece'}: {self.vocab_size} tokens>"

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        limit: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[int]:
        """The ids of `text`.

        `add_special` puts begin and end of text around it where the model wants them. With `parse_special`
        False, control tokens spelled out in the text are ordinary text (for text that nobody vouches for);
        user-defined ones are still tokens. Lone surrogates become U+FFFD.

        Raises ContextLengthError as soon as it is certain that there are more than `limit` ids: at once for a
        text that is longer than so many of the longest token. Raises Cancelled soon after `cancelled()`.
        """
        if limit is not None:
            self.check_length(text, limit)
        asked = cancelled or never
        text = _clean(text)
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for part in self._partition(text, parse_special, limit, asked):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
                continue
            if self.add_space_prefix and after_special:
                part = " " + part
            ids += self._merger.encode(part, None if limit is None else limit - len(ids), asked)
            _check_count(len(ids), limit)
            after_special = False
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        _check_count(len(ids), limit)
        return ids

    @cached_property
    def _longest_chars(self) -> int:
        return max(map(len, self._vocabulary.tokens))

    @cached_property
    def _uncounted_chars(self) -> str | None:
        """Characters that may be in a text without being part of a token; None where any may."""
        left_out = self._merger.left_out
        swallowed = self._vocabulary.attrs & np.uint8(Attr.LSTRIP | Attr.RSTRIP)
        return left_out if left_out is None or not swallowed.any() else left_out + _C_SPACES

    def check_length(self, text: str, limit: int) -> None:
        """ContextLengthError, without cutting it, for a text that is longer than `limit` of the longest token."""
        if len(text) <= limit or len(text) <= limit * self._longest_chars or self._uncounted_chars is None:
            return
        n_chars = len(text) - sum(map(text.count, set(self._uncounted_chars)))
        _check_count(-(-n_chars // self._longest_chars), limit)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        The space that SentencePiece puts before a text is taken away again. `skip_special` leaves control
        tokens out.
        """
        pieces = []
        at_start = self.add_space_prefix
        for token_id in ids:
            special = self.is_special(token_id)
            if special and skip_special:
                continue
            piece = self.token_bytes(token_id)
            if at_start and not special and piece:
                piece = piece.removeprefix(b" ")
                at_start = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the text; perhaps part of a character, perhaps nothing."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._piece(self._checked(token_id))
        return piece

    def token_text(self, token_id: int) -> str:
        """The token as it stands in the vocabulary ("Ġthe", "▁the", "<0x0A>")."""
        return self._vocabulary.tokens[self._checked(token_id)]

    def token_id(self, text: str) -> int | None:
        """The id of the token that stands in the vocabulary as `text`, or None."""
        return self._vocabulary.ids.get(text)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which is not part of the text."""
        return bool(self._attrs[self._checked(token_id)] & _HIDDEN)

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"there is no token {token_id}: the vocabulary has {self.vocab_size}")
        return token_id

    def _piece(self, token_id: int) -> bytes:
        text = self._vocabulary.tokens[token_id]
        attr = self._attrs[token_id]
        pre = self._vocabulary.pre
        if attr & _PARTITIONING:
            return _utf8(text)
        if attr & Attr.BYTE:
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                return b""
        if not attr & Attr.NORMAL:
            return b""
        if pre is None or not pre.byte_level:
            return _utf8(text.replace(WORD_START, " "))
        return b"".join(BYTE_OF_CHARACTER.get(char) or _utf8(char) for char in text)

    def _partition(
        self, text: str, parse_special: bool, limit: int | None, cancelled: Callable[[], bool]
    ) -> list[str | int]:
        """Ordinary text and special tokens in turn. Longer tokens are found first, everywhere."""
        parts: list[str | int] = [text] if text else []
        for token_id in self._candidates(text, parse_special, cancelled):
            if cancelled():
                raise Cancelled("cancelled while special tokens were looked for")
            token = self._vocabulary.tokens[token_id]
            attr = self._attrs[token_id]
            split: list[str | int] = []
            for part in parts:
                if isinstance(part, str):
                    split += _split(part, token, token_id, bool(attr & Attr.LSTRIP), bool(attr & Attr.RSTRIP))
                else:
                    split.append(part)
            parts = split
            _check_count(len(parts) // 2, limit)  # of two neighbours, one at least is a special token
        return parts

    def _candidates(self, text: str, parse_special: bool, cancelled: Callable[[], bool]) -> list[int]:
        """Special tokens that may stand in `text`, in the order in which to look for them."""
        orders: list[int] = []
        for prefix, group in self._special_by_prefix.items():
            if prefix in text:
                orders += group
            elif cancelled():
                raise Cancelled("cancelled while special tokens were looked for")
        found = [self._special[order] for order in sorted(orders)]
        if not parse_special:
            found = [token_id for token_id in found if not self._attrs[token_id] & _HIDDEN]
        return found


def _check_count(n_tokens: int, limit: int | None) -> None:
    """ContextLengthError for more than `limit`."""
    if limit is not None and n_tokens > limit:
        raise ContextLengthError(
            f"the prompt has at least {n_tokens} tokens, the context {limit}; "
            "shorten the prompt or load the model with a larger context"
        )


def _split(text: str, token: str, token_id: int, lstrip: bool, rstrip: bool) -> list[str | int]:
    """`text` with each occurrence of `token` as its id, and the whitespace that it swallows gone."""
    parts: list[str | int] = []
    start = 0
    while (at := text.find(token, start)) >= 0:
        left = text[start:at].rstrip(_C_SPACES) if lstrip else text[start:at]
        if left:
            parts.append(left)
        parts.append(token_id)
        start = at + len(token)
        while rstrip and start < len(text) and text[start] in _C_SPACES:
            start += 1
    if start < len(text):
        parts.append(text[start:])
    return parts


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _clean(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text
