"""What the head tells the others of a pass: which positions of which sequences its rows are, in what pages these lie
and in what blocks their states. Neither text nor tokens. Between passes it says of which blocks of pages it wants
copies, or gives them back (`copying.py`).

All ranks hold a sequence's keys and values in pages of the same positions, each of its own heads. Who holds which page
is decided on the head alone, by its `KvSequence`s; the others follow. So sequences that are cut, copied, begun with
what others had, or forgotten need nothing but the tables of those that take part in the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import msgspec
import numpy as np

from edgerun.cluster.collective import MOST_MESSAGE_BYTES
from edgerun.errors import FormatError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv import KvSequence, PagePool
from edgerun.kv.blocks import BLOCKS, U8, block_bytes, read_block, write_block
from edgerun.kv.page import Page
from edgerun.kv.states import StateBlock
from edgerun.models.places import Pass, Run

_MOST_SEQUENCES = 1 << 12
MOST_BLOCKS_BYTES = 1 << 26  # of one rank at once
_MOST_PIECES = 1 << 10  # of a block of states


class SaidRun(msgspec.Struct, frozen=True, array_like=True):
    """Rows of a sequence from a position on."""

    sequence: int
    start: int
    rows: int


class SaidTable(msgspec.Struct, frozen=True, array_like=True):
    """A sequence's pages of a group of layers by their numbers, 0 for none. Told when they changed."""

    sequence: int
    group: int
    pages: list[int]


class SaidCopy(msgspec.Struct, frozen=True, array_like=True):
    """A page that took over what was in another."""

    group: int
    to: int
    source: int


class SaidStates(msgspec.Struct, frozen=True, array_like=True):
    """The blocks of recurrent states that a pass reads and writes of a sequence, by their numbers, and the positions
    that each comes after, ascending: where the rows begin, unless they go on in what the rows before have left off in,
    perhaps some within, and one where they end or later."""

    sequence: int
    positions: list[int]
    blocks: list[int]


class SaidPass(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A pass. Copies come first, then tables; `ended` sequences are gone before both, `freed` pages and blocks after
    copies. states: of every run, of a model that has some."""

    runs: list[SaidRun]
    wanted: list[int]
    few: bool
    tables: list[SaidTable]
    copies: list[SaidCopy]
    freed: list[int]
    ended: list[int]
    states: list[SaidStates]


class SaidBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block of a page, by its number there (`kv.blocks`)."""

    group: int
    page: int
    number: int


class SaidWant(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The head wants these; each rank gives it its part of them, one after another."""

    blocks: list[SaidBlock]


class SaidBack(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Each rank gets its part of these, in pages that may be new to it, and says whether it has them."""

    blocks: list[SaidBlock]


class SaidWantStates(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The head wants a block of states, by its number; each rank gives it its own in so many pieces."""

    block: int
    pieces: int


class SaidBackStates(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Each rank gets its part of a block of states in so many pieces, and says whether it has it."""

    block: int
    pieces: int


SaidCopies = SaidWant | SaidBack | SaidWantStates | SaidBackStates
Said = SaidPass | SaidCopies


class Teller:
    """On the head: what passes are told as. `pool`: of its sequences, whose copies of pages it hears of."""

    def __init__(self, pool: PagePool) -> None:
        self._pages: WeakKeyDictionary[Page | StateBlock, int] = WeakKeyDictionary()
        self._has_states = pool.states is not None
        self._told_pages: set[int] = set()
        self._sequences: WeakKeyDictionary[KvSequence, int] = WeakKeyDictionary()
        self._told_sequences: set[int] = set()
        self._tables: WeakKeyDictionary[KvSequence, list[object]] = WeakKeyDictionary()  # lists as they were told
        self._copies: list[SaidCopy] = []
        self._next = 1
        pool.copied = self.copied

    def said(self, task: Pass) -> bytes:
        """A pass as a message."""
        runs, tables, states = [], [], []
        for run in task.runs:
            sequence = run.sequence
            number = self._sequence_number(sequence)
            runs.append(SaidRun(number, run.start, run.rows))
            held, told = sequence.held(), self._tables.get(sequence)
            for group, pages in enumerate(held):
                if told is None or told[group] is not pages:
                    numbers = [0 if page is None else self._number(page) for page in pages]
                    tables.append(SaidTable(number, group, numbers))
            self._tables[sequence] = list(held)
            if self._has_states:
                blocks = sorted(sequence.states.of_step(run.start, run.rows).items())
                states.append(SaidStates(number, [n for n, _ in blocks], [self._number(each) for _, each in blocks]))
        copies, self._copies = self._copies, []
        self._told_pages.update(number for copy in copies for number in (copy.to, copy.source))
        alive, here = set(self._pages.values()), set(self._sequences.values())
        freed, ended = sorted(self._told_pages - alive), sorted(self._told_sequences - here)
        said = SaidPass(runs, list(task.wanted), task.few, tables, copies, freed, ended, states)
        message = msgspec.msgpack.encode(said)
        self._told_pages, self._told_sequences = alive, here
        return message

    def number_of(self, page: Page | StateBlock) -> int:
        """Of a page or a block that the others hear of with it."""
        number = self._number(page)
        self._told_pages.add(number)
        return number

    def copied(self, group: int, to: Page, source: Page) -> None:
        """A page took over what is in another."""
        self._copies.append(SaidCopy(group, self._number(to), self._number(source)))

    def _number(self, page: Page | StateBlock) -> int:
        number = self._pages.get(page)
        if number is None:
            number = self._pages[page] = self._next
            self._next += 1
        return number

    def _sequence_number(self, sequence: KvSequence) -> int:
        number = self._sequences.get(sequence)
        if number is None:
            number = self._sequences[sequence] = self._next
            self._next += 1
        return number


class Follower:
    """On the other ranks: the sequences that passes are about. capacity: positions of each.

    Kernels go where tables send them, so nothing is computed before each page is known to be there and of its group,
    whatever the head says."""

    def __init__(self, pool: PagePool, capacity: int) -> None:
        self._pool = pool
        self._capacity = capacity
        self._pages: dict[int, tuple[int, Page]] = {}  # its group, and it
        self._blocks: dict[int, StateBlock] = {}
        self._sequences: dict[int, KvSequence] = {}
        self._waiting: list[SaidPass] = []  # whose pages could not be had yet
        self._holder = KvSequence(pool, capacity)  # asks for pages on behalf of all

    def task(self, said: SaidPass) -> Pass:
        """What the head said as a pass here, to be computed at once. DoesNotFitError where there is no memory for its
        pages: then what it said of pages is made up for by the next. FormatError for what no head says."""
        self.check(said)
        self._waiting.append(said)
        while self._waiting:
            self._apply(self._waiting[0])
            del self._waiting[0]
        runs = tuple(Run(self._sequence(run.sequence), run.start, run.rows) for run in said.runs)
        for run in runs:
            self._check_held(run)
        for states in said.states:
            blocks = [self._block(number) for number in states.blocks]
            self._sequence(states.sequence).states.hold(dict(zip(states.positions, blocks, strict=True)))
        return Pass(runs, said.wanted, said.few)

    def check(self, said: SaidPass) -> int:
        """The rows of a pass. FormatError for one that no head says."""
        for run in said.runs:
            if run.start < 0 or run.rows < 1 or run.start + run.rows > self._capacity:
                raise FormatError(f"a pass of positions {run.start} to {run.start + run.rows} of {self._capacity}")
        rows = sum(run.rows for run in said.runs)
        if not said.runs or any(not 0 <= row < rows for row in said.wanted):
            raise FormatError("a pass without rows, or with logits of others")
        if len({run.sequence for run in said.runs}) != len(said.runs):
            raise FormatError("a pass with two stretches of one sequence")
        groups = {table.group for table in said.tables} | {copy.group for copy in said.copies}
        if not groups <= set(range(len(self._pool.groups))):
            raise FormatError(f"a page of a group that is none of {len(self._pool.groups)}")
        most = -(-self._capacity // KEYS_PER_PAGE)
        if any(len(table.pages) > most for table in said.tables):
            raise FormatError(f"a sequence of more than {most} pages")
        self._check_states(said)
        return rows

    def _check_states(self, said: SaidPass) -> None:
        """Every row must find a block to go on from, and one to write."""
        if len(said.states) != (0 if self._pool.states is None else len(said.runs)):
            raise FormatError("a pass without the states of its sequences, or with some that the model has not")
        for run, states in zip(said.runs, said.states, strict=False):
            end, at = run.start + run.rows, states.positions
            inner, last = range(max(1, run.start), end), range(end, self._capacity + 1)
            fits = at == sorted(set(at)) and bool(at) and at[-1] in last and all(each in inner for each in at[:-1])
            if run.sequence != states.sequence or not fits:
                raise FormatError(f"a pass of {run.rows} rows after {run.start} with states after {at}")
            if len(set(states.blocks)) != len(at) or len(states.blocks) != len(at):
                raise FormatError("a pass that writes one block of states twice")

    def _check_held(self, run: Run) -> None:
        """Every position that the rows write, or see, must lie in a page."""
        written = range(run.start // KEYS_PER_PAGE, (run.start + run.rows - 1) // KEYS_PER_PAGE + 1)
        for group, pages in zip(self._pool.groups, run.sequence.held(), strict=True):
            for index in (*group.seen_pages(run.start), *written):
                if index >= len(pages) or pages[index] is None:
                    raise FormatError(f"a pass of positions that lie in no page: {run.start} and {run.rows - 1} more")

    def _apply(self, said: SaidPass) -> None:
        """What it says of pages. May be called again after it failed: pages are taken before anything changes."""
        for number in said.ended:
            self._sequences.pop(number, None)
        for copy in said.copies:
            self._page(copy.group, copy.to)
        for table in said.tables:
            for number in table.pages:
                if number:
                    self._page(table.group, number)
        for copy in said.copies:
            group, source = self._pages.get(copy.source, (-1, None))
            if source is None or group != copy.group:
                raise FormatError(f"a pass copies page {copy.source}, which its group does not hold")
            self._page(copy.group, copy.to).copy_from(source)
        for number in said.freed:
            self._pages.pop(number, None)
            self._blocks.pop(number, None)
        for table in said.tables:
            pages = [self._page(table.group, number) if number else None for number in table.pages]
            self._sequence(table.sequence).hold(table.group, pages, 0)

    def check_blocks(self, blocks: Sequence[SaidBlock]) -> int:
        """Bytes of these together, here. FormatError for such as no page has, or for more than go at once."""
        sizes = [block_bytes(group) for group in self._pool.groups]
        if any(not 0 <= block.group < len(sizes) or not 0 <= block.number < BLOCKS for block in blocks):
            raise FormatError("blocks that no page has")
        n_bytes = sum(sizes[block.group] for block in blocks)
        if n_bytes > MOST_BLOCKS_BYTES:
            raise FormatError(f"{n_bytes} bytes of blocks at once; at most {MOST_BLOCKS_BYTES} go")
        return n_bytes

    def read(self, blocks: Sequence[SaidBlock]) -> U8:
        """What is in these, one after another. FormatError where a page is not known here."""
        data = np.empty(self.check_blocks(blocks), np.uint8)
        for block, part in self._parts(blocks, data):
            group, page = self._pages.get(block.page, (-1, None))
            if page is None or group != block.group:
                raise FormatError(f"a block of page {block.page}, which its group does not hold")
            part[...] = read_block(page, self._pool.groups[group], block.number)
        return data

    def write(self, blocks: Sequence[SaidBlock], data: U8) -> None:
        """`read`'s way back, into pages that may be new. DoesNotFitError where there is no memory for one."""
        for block, part in self._parts(blocks, data):
            write_block(self._page(block.group, block.page), self._pool.groups[block.group], block.number, part)

    def state_pieces(self, said: SaidWantStates | SaidBackStates) -> list[slice]:
        """The bytes of each piece of a block of states here. FormatError for so many that no head says, or so large."""
        n_bytes = 0 if self._pool.states is None else self._pool.states.n_bytes
        if not 1 <= said.pieces <= _MOST_PIECES or n_bytes // said.pieces > MOST_BLOCKS_BYTES:
            raise FormatError(f"a block of {n_bytes} bytes of states in {said.pieces} pieces")
        return state_pieces(n_bytes, said.pieces)

    def states(self, number: int) -> U8:
        """What is in a block, not a copy. FormatError where it is not known here."""
        if number not in self._blocks:
            raise FormatError(f"block {number} of states, which nobody spoke of")
        return self._blocks[number].content

    def write_states(self, number: int, data: U8) -> None:
        """A block that may be new holds these. DoesNotFitError where there is no memory for it."""
        self._block(number).content[:] = data

    def _parts(self, blocks: Sequence[SaidBlock], data: U8) -> Iterator[tuple[SaidBlock, U8]]:
        at = 0
        for block in blocks:
            end = at + block_bytes(self._pool.groups[block.group])
            yield block, data[at:end]
            at = end

    def release(self) -> None:
        """Let go of everything."""
        self._sequences.clear()
        self._pages.clear()
        self._blocks.clear()
        self._waiting.clear()

    def _sequence(self, number: int) -> KvSequence:
        found = self._sequences.get(number)
        if found is None:
            if len(self._sequences) >= _MOST_SEQUENCES:
                raise FormatError(f"more than {_MOST_SEQUENCES} sequences")
            found = self._sequences[number] = KvSequence(self._pool, self._capacity)
        return found

    def _block(self, number: int) -> StateBlock:
        found = self._blocks.get(number)
        if found is None:
            assert self._pool.states is not None  # _check_states
            found = self._blocks[number] = self._pool.states.take(self._holder)
        return found

    def _page(self, group: int, number: int) -> Page:
        known = self._pages.get(number)
        if known is None:
            (page,) = self._pool.take(self._holder, [group])
            page.content[:] = 0  # a head may ask for what is in it (`read`), which must be nothing of others
            known = self._pages[number] = group, page
        if known[0] != group:
            raise FormatError(f"page {number} of group {known[0]} in a table of group {group}")
        return known[1]


def state_pieces(n_bytes: int, pieces: int) -> list[slice]:
    """The bytes of each of so many pieces of a rank's block of states: whole numbers of four."""
    edges = [n_bytes // 4 * index // pieces * 4 for index in range(pieces + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


def parsed(message: bytes) -> Said:
    """A message of the head's. FormatError for one that no head says."""
    if len(message) > MOST_MESSAGE_BYTES:
        raise FormatError(f"a message of {len(message)} bytes")
    try:
        return msgspec.msgpack.decode(message, type=Said)
    except msgspec.DecodeError as error:
        raise FormatError(f"neither a pass nor blocks: {error}") from None
