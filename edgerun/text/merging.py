"""From words to ids: merging symbols pair by pair, the best pair first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from threading import Lock
from typing import Any, Protocol

from edgerun.device.forks import call_after_fork
from edgerun.text.characters import BYTE_CHARACTERS, byte_encode
from edgerun.text.vocabulary import Vocabulary

_MAX_CACHED_WORDS = 1 << 16
_MAX_CACHED_CHARS = 64
WORD_START = "▁"  # SentencePiece's space


class Merger(Protocol):
    """Turns a piece of text, without special tokens, into ids."""

    def encode(self, text: str) -> list[int]: ...


def make_merger(vocabulary: Vocabulary) -> Merger:
    """The merger of the vocabulary's kind."""
    if vocabulary.pre is None:
        return SentencePieceMerger(vocabulary)
    return BpeMerger(vocabulary)


def merge_symbols(symbols: list[str], priority: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours until `priority` (smaller goes first, None: never) finds no more; ties go leftmost."""
    n = len(symbols)
    if n < 2:
        return symbols
    text = list(symbols)
    after = [*range(1, n), -1]
    before = [*range(-1, n - 1)]
    heap: list[tuple[float, int, int]] = []  # priority, left symbol, length of the merged text
    for i in range(n - 1):
        rank = priority(text[i], text[i + 1])
        if rank is not None:
            heap.append((rank, i, len(text[i]) + len(text[i + 1])))
    heapify(heap)
    while heap:
        _, left, length = heappop(heap)
        right = after[left]
        if right < 0 or not text[left] or len(text[left]) + len(text[right]) != length:
            continue  # one of the two has been merged since
        text[left] += text[right]
        text[right] = ""
        far = after[left] = after[right]
        if far >= 0:
            before[far] = left
            rank = priority(text[left], text[far])
            if rank is not None:
                heappush(heap, (rank, left, length + len(text[far])))
        near = before[left]
        if near >= 0:
            rank = priority(text[near], text[left])
            if rank is not None:
                heappush(heap, (rank, near, len(text[near]) + length))
    return [part for part in text if part]


class _WordCache:
    """Ids of words seen before. Text repeats its words, so this is most of the speed."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        self._encode = encode
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, word: str) -> tuple[int, ...]:
        ids = self._known.get(word)
        if ids is None:
            ids = self._encode(word)
            if len(word) <= _MAX_CACHED_CHARS:
                if len(self._known) >= _MAX_CACHED_WORDS:
                    self._known = {}
                self._known[word] = ids
        return ids


class BpeMerger:
    """Byte-pair encoding: the pair that stands first in the list of merges is joined first.

    Runs in the `tokenizers` library, which takes 0.3 s to build for a vocabulary of 150,000. So it comes in
    once `library_after_chars` of new words have been merged here: a first chat message need not wait for it.
    What it refuses or drops where llama.cpp does not (merges that make no token, bytes that are no token) is
    always merged here.
    """

    def __init__(self, vocabulary: Vocabulary, library_after_chars: int = 1 << 14) -> None:
        assert vocabulary.pre is not None
        self._ids = vocabulary.ids
        self._merges = vocabulary.merges
        self._pre = vocabulary.pre
        self._word_ids = _WordCache(self._encode_word)
        self._missing = {char for char in BYTE_CHARACTERS if char not in vocabulary.ids}
        self._model: Any = None  # tokenizers.models.BPE, or False where the library cannot
        self._chars_before_library = library_after_chars
        self._ranks: dict[str, int] = {}
        self._lock = Lock()
        call_after_fork(self)

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._lock = Lock()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, in which no special token is looked for."""
        if not self._pre.byte_level:
            text = text.replace(" ", WORD_START)
        ids: list[int] = []
        word_ids = self._word_ids
        for word in self._pre.split(text):
            ids += word_ids(word)
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if self._pre.byte_level:
            word = byte_encode(word)
        if self._model is None:
            self._chars_before_library -= len(word)
            if self._chars_before_library >= 0:
                return self._merged(word)
            with self._lock:
                if self._model is None:
                    self._model = self._library() or False
        if self._model and self._missing.isdisjoint(word):
            return tuple(token.id for token in self._model.tokenize(word))
        return self._merged(word)

    def _library(self) -> Any:
        ids = self._ids
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in self._merges)]
        if (
            not self._pre.byte_level
            or not _is_unicode(ids)
            or len(set(self._merges)) < len(self._merges)
            or not all(left in ids and right in ids and left + right in ids for left, right in pairs)
        ):
            return None
        from tokenizers.models import BPE

        return BPE(ids, pairs, ignore_merges=self._pre.ignore_merges)

    def _merged(self, word: str) -> tuple[int, ...]:
        ids, pre, ranks = self._ids, self._pre, self._all_ranks()
        whole = ids.get(word)
        if whole is not None and (pre.ignore_merges or (pre.name == "gemma4" and not word.strip("\n"))):
            return (whole,)
        found: list[int] = []
        for part in merge_symbols(list(word), lambda left, right: ranks.get(f"{left} {right}")):
            if part in ids:
                found.append(ids[part])
            elif pre.byte_level:
                found += (ids[char] for char in part if char.isascii() and char in ids)
            else:
                names = (f"<0x{byte:02X}>" for byte in part.encode())
                found += (ids[name] for name in names if name in ids)
        return tuple(found)

    def _all_ranks(self) -> dict[str, int]:
        """Ranks by the merges as they are written, "left right": no symbol has a space in it."""
        if not self._ranks:
            last = len(self._merges) - 1
            self._ranks = dict(zip(reversed(self._merges), range(last, -1, -1), strict=True))  # first one wins
        return self._ranks


def _is_unicode(texts: Iterable[str]) -> bool:
    """False when a token is not whole characters, which GGUF allows."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


class SentencePieceMerger:
    """SentencePiece BPE as llama.cpp does it: the pair whose token has the highest score is joined first.

    The whole text is one word in principle. It may be cut where no token reaches across, so that words can be
    remembered: before a ▁ whose left neighbour stands left of a ▁ in no token.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._words: re.Pattern[str] | None = None
        self._word_ids = _WordCache(self._encode_word)

    def encode(self, text: str) -> list[int]:
        if self._words is None:
            self._words = self._word_pattern()
        ids: list[int] = []
        word_ids = self._word_ids
        for word in self._words.split(text.replace(" ", WORD_START)):
            ids += word_ids(word)
        return ids

    def _word_pattern(self) -> re.Pattern[str]:
        joined = {
            token[i - 1]
            for token in self._vocabulary.tokens
            if WORD_START in token
            for i in range(1, len(token))
            if token[i] == WORD_START
        }
        inside = "".join(re.escape(char) for char in sorted(joined | {WORD_START}))
        return re.compile(f"(?<=[^{inside}])(?={WORD_START})")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        ids, scores = self._vocabulary.ids, self._vocabulary.scores

        def priority(left: str, right: str) -> float | None:
            token_id = ids.get(left + right)
            return None if token_id is None else -float(scores[token_id])

        found: list[int] = []
        for part in merge_symbols(list(word), priority):
            token_id = ids.get(part)
            if token_id is not None:
                found.append(token_id)
            else:
                found += (self._byte_id(byte) for byte in part.encode())
        return tuple(i for i in found if i >= 0)

    def _byte_id(self, byte: int) -> int:
        """The token of a byte; the unknown token where the vocabulary has none; -1 without that either."""
        ids, unknown = self._vocabulary.ids, self._vocabulary.unknown_id
        fallback = -1 if unknown is None else unknown
        token_id = ids.get(f"<0x{byte:02X}>")
        if token_id is None and byte < 128:
            token_id = ids.get(chr(byte))
        return fallback if token_id is None else token_id
