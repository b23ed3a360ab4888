"""Sums of long arrays, as a prompt's are, rounded to eighths: whoever computes rounds, adds and reads with kernels, and
letters lie where these read and write them.

By the mesh each rank adds up a part of the numbers and hands it out; by the star the head adds up all. Either way what
every rank has is rounded, added in the order of ranks, and the sum is rounded: star and mesh give the same bits, on all
ranks. Behind the numbers a letter says whether the rank that sends it cannot go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.wire import HEADER, MAGIC, VERSION
from edgerun.cluster.wire_format import U8, wire_format
from edgerun.kernels.eighths import BLOCK, SPARE_BYTES, eighths_bytes

_CODE = wire_format("q8").code


class Long:
    """One rank's buffers for sums of `count` numbers, of which each rank must have some (`long_parts`)."""

    def __init__(self, peers: Peers, count: int, *, is_star: bool) -> None:
        self._peers, self._is_star = peers, is_star
        self._parts = [slice(0, count)] * peers.size if is_star else long_parts(count, peers.size)
        mine = self._parts[peers.rank]
        ranks = range(peers.size)
        self._given = [_Letter(part.stop - part.start) for part in self._parts]  # what each rank adds up, of this one
        self._got = [
            self._given[peers.rank] if rank == peers.rank else _Letter(mine.stop - mine.start) for rank in ranks
        ]
        self._sums = [_Letter(part.stop - part.start) for part in self._parts]  # that each hands out

    def __call__(self, x: F32, *, ends: bool) -> bool:
        """Put the sum of all ranks' x (count,) in its place; whether one of them `ends`."""
        if not self._is_star:
            return self._by_mesh(x, ends)
        return self._at_head(x, ends) if self._peers.rank == HEAD else self._by_head(x, ends)

    def _by_mesh(self, x: F32, ends: bool) -> bool:
        rank, others = self._peers.rank, self._peers.others

        def given() -> Iterator[tuple[int, memoryview]]:
            for other in self._peers.in_turn:  # the first is on its way while the next is rounded
                yield other, self._rounded(x[self._parts[other]], self._given[other], ends)
            self._rounded(x[self._parts[rank]], self._given[rank], ends)

        self._swap(given(), {other: self._got[other] for other in others})
        is_over = self._added(x[self._parts[rank]])
        mine = self._sums[rank].whole
        self._swap(((other, mine) for other in self._peers.in_turn), {other: self._sums[other] for other in others})
        for other in others:
            self._read(self._sums[other], x[self._parts[other]])
        return is_over

    def _at_head(self, x: F32, ends: bool) -> bool:
        self._rounded(x, self._given[HEAD], ends)
        self._swap((), {other: self._got[other] for other in self._peers.others})
        is_over = self._added(x)
        down = self._sums[HEAD].whole
        self._swap(((other, down) for other in self._peers.in_turn), {})
        return is_over

    def _by_head(self, x: F32, ends: bool) -> bool:
        up, down = self._given[HEAD], self._sums[HEAD]
        self._swap([(HEAD, self._rounded(x, up, ends))], {})
        self._swap((), {HEAD: down})
        self._read(down, x)
        return down.ends

    def _rounded(self, part: F32, letter: _Letter, ends: bool) -> memoryview:
        self._peers.rounding.round_eighths(part, letter.numbers)
        return letter.closed(self._peers.call, ends)

    def _added(self, part: F32) -> bool:
        """What all have sent of this rank's part, as it is handed out then; whether one of them ends."""
        mine, is_over = self._sums[self._peers.rank], any(letter.ends for letter in self._got)
        self._peers.rounding.sum_eighths([letter.numbers for letter in self._got], part, mine.numbers)
        mine.closed(self._peers.call, is_over)
        return is_over

    def _read(self, letter: _Letter, part: F32) -> None:
        self._peers.rounding.sum_eighths([letter.numbers], part)

    def _swap(
        self,
        sends: Sequence[tuple[int, memoryview]] | Iterator[tuple[int, memoryview]],
        receives: Mapping[int, _Letter],
    ) -> None:
        for rank, letter in receives.items():
            self._peers.links[rank].expect_in(letter.buffer, _CODE, self._peers.call, letter.n_bytes)
        self._peers.trade(sends, receives)


def long_parts(count: int, size: int) -> list[slice]:
    """What each of so many ranks adds up: whole blocks, but for the last, which may be short, or empty."""
    step = -(-count // (size * BLOCK)) * BLOCK
    return [slice(min(count, rank * step), min(count, (rank + 1) * step)) for rank in range(size)]


class _Letter:
    """A frame of rounded numbers in memory of its own. buffer: a header, numbers, and bytes to spare, the first of
    which says whether the sender ends; numbers: without the header, as kernels take them."""

    def __init__(self, count: int) -> None:
        self.n_bytes = eighths_bytes(count) + 1  # of the body
        self.buffer: U8 = np.zeros(HEADER.size + eighths_bytes(count) + SPARE_BYTES, np.uint8)
        self.numbers = self.buffer[HEADER.size :]
        self.whole = self.buffer[: HEADER.size + self.n_bytes].data

    @property
    def ends(self) -> bool:
        return bool(self.whole[-1])

    def closed(self, call: int, ends: bool) -> memoryview:
        """With its header and its end, to be sent."""
        HEADER.pack_into(self.buffer.data, 0, MAGIC, VERSION, _CODE, self.n_bytes, call & 0xFFFFFFFF)
        self.whole[-1] = ends
        return self.whole
