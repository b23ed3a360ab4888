"""Which recurrent states one sequence holds: a block for each of some numbers of positions.

Where a step ends there is one, and where the step before ended. Within a prompt there are checkpoints: at its end but
for one token, whose logits the next answer to the same prompt needs; and here and there, the nearer to the end the
closer. A few rows with guesses among them leave a block each, where these are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.formats.checked_tensors import Form
from edgerun.kernels.states import StateLayout
from edgerun.kv.ledger import Holder
from edgerun.kv.states import SMALL_BYTES, U8, StateBlock, StateBlocks, sequence_checkpoints

I64 = NDArray[np.int64]

_FEW_ROWS = 8  # of a step, which may be guesses
_MOST_MARKS = 8


class SequenceStates:
    """`holder` is the sequence, as the ledger knows it, which may become `capacity` positions long: as many checkpoints
    are kept as were planned for such a one. Blocks beyond its length are those that its step is to write.
    Whatever an interrupt leaves, no block that is held for a position has been written for another."""

    def __init__(self, blocks: StateBlocks, holder: Holder, capacity: int) -> None:
        self._blocks = blocks
        self._holder = holder
        self._most_checkpoints = sequence_checkpoints(blocks.model_bytes, capacity)
        self._kept: dict[int, StateBlock] = {}  # by the positions that it comes after
        self._in_hand: list[StateBlock] = []  # nobody's, to be written next
        self._marks: list[int] = []  # where checkpoints are wanted, the newest last
        self._begun = 0  # where the last step began

    @property
    def n_bytes(self) -> int:
        """Of the blocks held, those that others hold too among them."""
        return (len(self._kept) + len(self._in_hand)) * self._blocks.n_bytes

    def all(self) -> Iterator[StateBlock]:
        """Each once."""
        yield from self._kept.values()
        yield from self._in_hand

    def layout(self, layer: int) -> StateLayout:
        """The layer's place in a block."""
        return self._blocks.layouts[layer]

    # -- for steps -----------------------------------------------------------------------------------------------

    def begin(self, length: int, tokens: int) -> None:
        """A step will write so many positions after the first `length`, whose states are there. What no longer matters
        is written next. DoesNotFitError when there is no block for the step's end; then what there was is there."""
        if length and length not in self._kept:
            raise UsageError(f"the states after {length} positions are not held: cut the sequence first")
        end = length + tokens
        checkpoints = self._most_checkpoints
        guesses = self._guesses(length, end)
        wanted = self._wanted(length, end)[:checkpoints] if guesses is None else guesses
        self._thin(length, checkpoints - (len(wanted) if guesses is None else 0))
        for position in [each for each in self._kept if each != length and not self._is_checkpoint(each, length)]:
            self._let_go(position)
        self._begun = length
        in_hand = self._in_hand
        self._kept[end] = in_hand.pop() if in_hand else self._blocks.take(self._holder)
        for position in wanted:
            block = in_hand.pop() if in_hand else self._blocks.take_if_free(self._holder)
            if block is None:
                break
            self._kept[position] = block
        del in_hand[_FEW_ROWS if guesses else 0 :]

    def of_step(self, start: int, rows: int) -> dict[int, StateBlock]:
        """What so many rows of a step, from position `start` on, read and write, by the positions that each comes
        after: where the rows end within the step, they leave off in the block of what comes after them."""
        end = min(each for each in self._kept if each >= start + rows)
        return {n: block for n, block in self._kept.items() if start <= n <= end}

    def hold(self, blocks: Mapping[int, StateBlock]) -> None:
        """Hold these in place of what is held: a sequence of another rank is told what a step reads and writes."""
        self.clear()
        self._kept = dict(blocks)

    def mark(self, position: int) -> None:
        """A checkpoint is wanted after so many positions, when they come, or now that they are there."""
        if position > 0 and position not in self._marks:
            self._marks = [*self._marks[1 - _MOST_MARKS :], position]

    def rows(self, start: int, rows: int) -> I64:
        """The table of `kernels.states.StateRows` for `rows` positions from `start` on: a new array."""
        table = np.empty((rows, 2), np.int64)
        low = 0
        source = self._source(start)
        for position in sorted(each for each in self._kept if each > start):
            high = min(position - start, rows)
            target = self._kept[position].address
            table[low:high] = target
            table[low, 0] = source or target  # a stretch goes on in the block that it is writing
            if high == rows:
                return table
            low, source = high, target
        raise UsageError(f"no states were made room for after {start + low} positions")

    def row(self, position: int) -> tuple[int, int]:
        """One row of such a table."""
        target = self._kept[min(each for each in self._kept if each > position)].address
        return self._source(position) or target, target

    def _source(self, start: int) -> int:
        """What position `start` goes on from; 0: from the block that is being written."""
        block = self._blocks.zeros if start == 0 else self._kept.get(start)
        return 0 if block is None else block.address

    # -- what is kept --------------------------------------------------------------------------------------------

    def nearest(self, n: int, length: int) -> Iterator[int]:
        """Numbers of positions, at most `n`, whose states are held in a sequence of `length`, descending; then 0."""
        yield from sorted((each for each in self._kept if each <= min(n, length)), reverse=True)
        yield 0

    def is_held(self, n: int) -> bool:
        """Whether the states after `n` positions are."""
        return n == 0 or n in self._kept

    def truncate(self, n: int) -> None:
        """The sequence has `n` positions, whose states are held."""
        self._marks = [each for each in self._marks if each <= n]
        for position in [each for each in self._kept if each > n]:
            self._let_go(position)
        self._begun = min(self._begun, n)

    def checkpoints(self, length: int) -> dict[int, StateBlock]:
        """What others may begin with, by position: they never are written again."""
        return {n: block for n, block in self._kept.items() if n <= length and self._is_checkpoint(n, length)}

    def share(self, n: int) -> dict[int, StateBlock]:
        """For a copy of the first `n` positions: all that may be of use to it."""
        found = {at: each for at, each in self._kept.items() if at == n or (at < n and self._is_checkpoint(at, n))}
        for block in found.values():
            block.is_shared = True
        return found

    def adopt(self, blocks: dict[int, StateBlock]) -> None:
        """Hold these, which others hold too, and no others."""
        self.clear()
        self._kept = dict(blocks)
        self._marks = sorted(each for each in blocks if each % self._blocks.every)[-_MOST_MARKS:]

    @property
    def form(self) -> Form:
        """Of the array that holds a block."""
        return "U8", (self._blocks.n_bytes,)

    def content(self, n: int) -> U8:
        """The states after `n` positions, which are held: (block_bytes,), not a copy."""
        return self._kept[n].content

    @property
    def keeps_rows(self) -> bool:
        """Whether those after each of a few rows are kept."""
        return self._blocks.model_bytes <= SMALL_BYTES

    def make_ready(self, n: int) -> U8:
        """Hold states after `n` positions, and no others: (block_bytes,), where they shall be copied to.
        DoesNotFitError."""
        self.clear()
        block = self._kept[n] = self._blocks.take(self._holder)
        return block.content

    def make_room(self, n_bytes: int, length: int) -> None:
        """Let go of checkpoints, the earliest first, until so much is free."""
        while self._in_hand and n_bytes > 0:
            n_bytes -= self._in_hand.pop().n_bytes
        for position in sorted(self._kept):
            if n_bytes <= 0:
                return
            if position < length and position != self._begun:
                n_bytes -= self._kept.pop(position).n_bytes

    def clear(self) -> None:
        """Hold nothing."""
        self._kept, self._in_hand, self._marks, self._begun = {}, [], [], 0

    # -- which checkpoints there are -----------------------------------------------------------------------------

    def _is_checkpoint(self, position: int, length: int) -> bool:
        return position <= length and (position % self._blocks.every == 0 or position in self._marks)

    def _guesses(self, length: int, end: int) -> list[int] | None:
        """Positions within a step that may have guesses: of all, if they are small. None: it has none."""
        few = end - length <= _FEW_ROWS and self.keeps_rows
        return list(range(end - 1, length, -1)) if few else None

    def _wanted(self, length: int, end: int) -> list[int]:
        """Positions within a step where checkpoints should be, those that matter most first."""
        found = [each for each in reversed(self._marks) if length < each < end]
        every = self._blocks.every
        regular = range(length // every * every + every, end, every)[-self._most_checkpoints :]
        return [*found, *(each for each in reversed(regular) if each not in found)]

    def _thin(self, length: int, most: int) -> None:
        """Let go of checkpoints while there are more: each time of the one that is missed least, which is where its
        neighbours are closest for its distance from the end. The newest mark goes last."""
        newest = max((each for each in self._marks if each <= length), default=0)
        while True:
            held = sorted(n for n in self._kept if n != length and self._is_checkpoint(n, length))
            if len(held) <= most:
                return
            others = [each for each in held if each != newest] or held
            around = zip([0, *others[:-1]], others, [*others[1:], length], strict=True)
            gaps = [(after - before) / (length - at) for before, at, after in around]
            self._let_go(others[gaps.index(min(gaps))])

    def _let_go(self, position: int) -> None:
        block = self._kept.pop(position)
        if not block.is_shared:
            self._in_hand.append(block)

    def check_integrity(self, length: int, capacity: int) -> None:
        """AssertionError for what cannot be. For tests."""
        assert self.is_held(length), "the states of the end are not held"
        assert all(0 < each <= capacity for each in self._kept)
        held = list(self.all())
        assert len(set(held)) == len(held), "one block in two places"
        assert not any(block.is_shared for block in self._in_hand), "others hold what is to be written"
        assert not any(self._kept[each].is_shared for each in self._kept if each > length)
