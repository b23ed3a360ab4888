"""From words to ids: merging symbols pair by pair, the best pair first."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from threading import Lock
from typing import Any, Protocol

import numpy as np

from edgerun.device.forks import call_after_fork
from edgerun.errors import Cancelled
from edgerun.events import never
from edgerun.text.characters import BYTE_CHARACTERS, byte_encode
from edgerun.text.vocabulary import Vocabulary

_MAX_CACHED_WORDS = 1 << 15
_MAX_CACHED_CHARS = 1 << 19  # of all words in the cache
_MAX_CACHED_WORD_CHARS = 64
_MAX_LIBRARY_WORD_CHARS = 1 << 12  # the library takes 300 bytes for each and cannot be stopped
_WORDS_A_LOOK = 256  # between two looks at whether to go on
_PAIRS_A_LOOK = 1 << 14
WORD_START = "▁"  # SentencePiece's space


class Merger(Protocol):
    """Turns a piece of text, without special tokens, into ids. `left_out`: the characters that become no token; None
    where there may be others than ASCII."""

    @property
    def left_out(self) -> str | None: ...

    def encode(self, text: str, room: int | None = None, cancelled: Callable[[], bool] = never) -> list[int]: ...


def make_merger(vocabulary: Vocabulary) -> Merger:
    """The merger of the vocabulary's kind."""
    if vocabulary.pre is None:
        return SentencePieceMerger(vocabulary)
    return BpeMerger(vocabulary)


def merge_symbols(
    text: str, rank: Callable[[int, int, int], int | None], cancelled: Callable[[], bool] = never
) -> Iterator[str]:
    """Join neighbours, characters at first, until none can be joined; the symbols that are left, in order.

    `rank(a, b, c)`: of joining text[a:b] and text[b:c]; smaller goes first, None: never; ties go leftmost. Takes
    n log n time and some 60 bytes for each character, whatever the text is. Raises Cancelled.
    """
    n = len(text)
    end = array("i", range(1, n + 1))  # of the symbol that begins here; 0: none does any more
    before = array("i", range(-1, n - 1))  # where the symbol before the one that begins here begins
    pairs = array("Q")  # rank << 32 | where the left symbol begins
    for start in range(0, n - 1, _PAIRS_A_LOOK):
        _look(cancelled)
        for left in range(start, min(start + _PAIRS_A_LOOK, n - 1)):
            found = rank(left, left + 1, left + 2)
            if found is not None:
                pairs.append(found << 32 | left)
    if pairs:
        np.frombuffer(pairs, np.uint64).sort()
    later: list[int] = []  # a heap: pairs that came to be by joining
    at, n_pairs, looked = 0, len(pairs), 0
    while at < n_pairs or later:
        if later and (at == n_pairs or later[0] < pairs[at]):
            key = heappop(later)
        else:
            key = pairs[at]
            at += 1
        looked += 1
        if not looked % _PAIRS_A_LOOK:
            _look(cancelled)
        left = key & 0xFFFFFFFF
        middle = end[left]
        if not middle or middle == n:
            continue  # it has been joined to the one before it, or with the last one
        right = end[middle]
        if rank(left, middle, right) != key >> 32:
            continue  # one of the two has been joined since; what they are now is another pair of the heap
        end[left], end[middle] = right, 0
        if right < n:
            before[right] = left
            found = rank(left, right, end[right])
            if found is not None:
                heappush(later, found << 32 | left)
        near = before[left]
        if near >= 0:
            found = rank(near, left, right)
            if found is not None:
                heappush(later, found << 32 | near)
    start = 0
    while start < n:
        yield text[start : end[start]]
        start = end[start]


def _look(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("cancelled while text was made into tokens")


def _encode_words(
    words: Iterable[str],
    word_ids: Callable[[str], tuple[int, ...]],
    long_word_ids: Callable[[str, Callable[[], bool]], Iterable[int]],
    room: int | None,
    cancelled: Callable[[], bool],
) -> list[int]:
    """The ids of all words; a few more than `room` of them are enough."""
    ids: list[int] = []
    for i, word in enumerate(words, 1):
        if len(word) <= _MAX_CACHED_WORD_CHARS:
            ids += word_ids(word)
        else:
            ids += long_word_ids(word, cancelled)
        if not i % _WORDS_A_LOOK or len(word) > _WORDS_A_LOOK:
            if room is not None and len(ids) > room:
                break
            _look(cancelled)
    return ids


class _WordCache:
    """Ids of words seen before. Text repeats its words, so this is most of the speed."""

    def __init__(self, encode: Callable[[str], Iterable[int]]) -> None:
        self._encode = encode
        self._known: dict[str, tuple[int, ...]] = {}
        self._n_chars = 0

    def __call__(self, word: str) -> tuple[int, ...]:
        ids = self._known.get(word)
        if ids is None:
            ids = tuple(self._encode(word))
            if len(self._known) >= _MAX_CACHED_WORDS or self._n_chars > _MAX_CACHED_CHARS:
                self._known, self._n_chars = {}, 0
            self._known[word] = ids
            self._n_chars += len(word)
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

    @property
    def left_out(self) -> str | None:
        """See `Merger`."""
        ids = self._ids
        if not self._pre.byte_level:
            return _left_out(lambda byte: f"<0x{byte:02X}>" in ids)
        if not all(merge.replace(" ", "", 1) in ids for merge in self._merges):
            return None  # of what such a merge makes, only ASCII becomes tokens
        return _left_out(lambda byte: BYTE_CHARACTERS[byte] in ids)

    def encode(self, text: str, room: int | None = None, cancelled: Callable[[], bool] = never) -> list[int]:
        """The ids of `text`, in which no special token is looked for. Stops early when there are more than `room`."""
        if not self._pre.byte_level:
            text = text.replace(" ", WORD_START)
        return _encode_words(self._pre.split(text), self._word_ids, self._encode_word, room, cancelled)

    def _encode_word(self, word: str, cancelled: Callable[[], bool] = never) -> Iterable[int]:
        if self._pre.byte_level:
            word = byte_encode(word)
        if self._model is None and len(word) <= _MAX_LIBRARY_WORD_CHARS:
            self._chars_before_library -= len(word)
            if self._chars_before_library >= 0:
                return self._merged(word, cancelled)
            with self._lock:
                if self._model is None:
                    self._model = self._library() or False
        if self._model and len(word) <= _MAX_LIBRARY_WORD_CHARS and self._missing.isdisjoint(word):
            return (token.id for token in self._model.tokenize(word))
        return self._merged(word, cancelled)

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

    def _merged(self, word: str, cancelled: Callable[[], bool]) -> Iterator[int]:
        ids, pre, ranks = self._ids, self._pre, self._all_ranks()

        def rank(left: int, middle: int, right: int) -> int | None:
            return ranks.get(f"{word[left:middle]} {word[middle:right]}")

        whole = ids.get(word)
        if whole is not None and (pre.ignore_merges or (pre.whole_lines and not word.strip("\n"))):
            yield whole
            return
        for part in merge_symbols(word, rank, cancelled):
            if part in ids:
                yield ids[part]
            elif pre.byte_level:
                yield from (ids[char] for char in part if char.isascii() and char in ids)
            else:
                names = (f"<0x{byte:02X}>" for byte in part.encode())
                yield from (ids[name] for name in names if name in ids)

    def _all_ranks(self) -> dict[str, int]:
        """Ranks by the merges as they are written, "left right": no symbol has a space in it."""
        if not self._ranks:
            last = len(self._merges) - 1
            self._ranks = dict(zip(reversed(self._merges), range(last, -1, -1), strict=True))  # first one wins
        return self._ranks


def _left_out(has_token: Callable[[int], bool]) -> str | None:
    """What becomes no token where bytes become tokens by themselves, if it is ASCII alone: every other character has a
    byte of 0x80 to 0xBF in it."""
    if not all(map(has_token, range(0x80, 0xC0))):
        return None
    return "".join(chr(byte) for byte in range(0x80) if not has_token(byte))


def _is_unicode(texts: Iterable[str]) -> bool:
    """False when a token is not whole characters, which GGUF allows."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


class SentencePieceMerger:
    """SentencePiece BPE as llama.cpp does it: the pair whose token has the highest score is joined first.

    The whole text is one word in principle. It may be cut where no token reaches across, so that words can be
    remembered: before a ▁ whose left neighbour stands left of a ▁ in no token, and around line breaks where no
    token has them beside anything else.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._cuts: re.Pattern[str] | None = None
        self._ranks: array[int] | None = None
        self._word_ids = _WordCache(self._encode_word)

    @property
    def left_out(self) -> str | None:
        """See `Merger`."""
        return _left_out(lambda byte: self._byte_id(byte) >= 0)

    def encode(self, text: str, room: int | None = None, cancelled: Callable[[], bool] = never) -> list[int]:
        """The ids of `text`, in which no special token is looked for. Stops early when there are more than `room`."""
        words = self._words(text.replace(" ", WORD_START))
        return _encode_words(words, self._word_ids, self._encode_word, room, cancelled)

    def _words(self, text: str) -> Iterator[str]:
        if self._cuts is None:
            self._cuts = self._cut_pattern()
        start = 0
        for match in self._cuts.finditer(text):
            yield text[start : match.start()]
            start = match.start()
        yield text[start:]

    def _cut_pattern(self) -> re.Pattern[str]:
        joined = {WORD_START}
        lines_stand_alone = True
        for token in self._vocabulary.tokens:
            at = token.find(WORD_START, 1)
            while at > 0:
                joined.add(token[at - 1])
                at = token.find(WORD_START, at + 1)
            if "\n" in token and token.strip("\n"):
                lines_stand_alone = False
        inside = "".join(re.escape(char) for char in sorted(joined))
        lines = r"|(?<=\n)(?=[^\n])|(?<=[^\n])(?=\n)" if lines_stand_alone else ""
        return re.compile(f"(?<=[^{inside}])(?={WORD_START}){lines}")

    def _encode_word(self, word: str, cancelled: Callable[[], bool] = never) -> Iterator[int]:
        ids, ranks = self._vocabulary.ids, self._all_ranks()

        def rank(left: int, _middle: int, right: int) -> int | None:
            token_id = ids.get(word[left:right])
            return None if token_id is None else ranks[token_id]

        for part in merge_symbols(word, rank, cancelled):
            token_id = ids.get(part)
            if token_id is not None:
                yield token_id
            else:
                yield from (i for i in map(self._byte_id, part.encode()) if i >= 0)

    def _all_ranks(self) -> array[int]:
        """Of every token; the highest score is first, equal ones are equal."""
        if self._ranks is None:
            _, order = np.unique(-self._vocabulary.scores, return_inverse=True)
            self._ranks = array("I", order.astype(np.uint32).tobytes())
        return self._ranks

    def _byte_id(self, byte: int) -> int:
        """The token of a byte; the unknown token where the vocabulary has none; -1 without that either."""
        ids, unknown = self._vocabulary.ids, self._vocabulary.unknown_id
        fallback = -1 if unknown is None else unknown
        token_id = ids.get(f"<0x{byte:02X}>")
        if token_id is None and byte < 128:
            token_id = ids.get(chr(byte))
        return fallback if token_id is None else token_id
