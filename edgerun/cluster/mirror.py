"""What the head tells the others of a pass: which positions of which sequences its rows are, and in what pages these
lie. Neither text nor tokens.

All ranks hold a sequence's keys and values in pages of the same positions, each of its own heads. Who holds which page
is decided on the head alone, by its `KvSequence`s; the others follow. So sequences that are cut, copied, begun with
what others had, or forgotten need nothing but the tables of those that take part in the next pass.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import msgspec

from edgerun.cluster.collective import MOST_MESSAGE_BYTES
from edgerun.errors import FormatError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv import KvSequence, PagePool
from edgerun.kv.page import Page
from edgerun.models.places import Pass, Run

_MOST_SEQUENCES = 1 << 12


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


class SaidPass(msgspec.Struct, frozen=True, array_like=True):
    """A pass. Copies come first, then tables; `ended` sequences are gone before both, `freed` pages after copies."""

    runs: list[SaidRun]
    wanted: list[int]
    few: bool
    tables: list[SaidTable]
    copies: list[SaidCopy]
    freed: list[int]
    ended: list[int]


class Teller:
    """On the head: what passes are told as. `pool`: of its sequences, whose copies of pages it hears of."""

    def __init__(self, pool: PagePool) -> None:
        self._pages: WeakKeyDictionary[Page, int] = WeakKeyDictionary()
        self._told_pages: set[int] = set()
        self._sequences: WeakKeyDictionary[KvSequence, int] = WeakKeyDictionary()
        self._told_sequences: set[int] = set()
        self._tables: WeakKeyDictionary[KvSequence, list[object]] = WeakKeyDictionary()  # lists as they were told
        self._copies: list[SaidCopy] = []
        self._next = 1
        pool.copied = self._copied

    def said(self, task: Pass) -> bytes:
        """A pass as a message."""
        runs, tables = [], []
        for run in task.runs:
            sequence = run.sequence
            number = self._sequence_number(sequence)
            runs.append(SaidRun(number, run.start, run.rows))
            held, told = sequence.held(), self._tables.get(sequence)
            for group, pages in enumerate(held):
                if told is None or told[group] is not pages:
                    numbers = [0 if page is None else self._page_number(page) for page in pages]
                    tables.append(SaidTable(number, group, numbers))
            self._tables[sequence] = list(held)
        copies, self._copies = self._copies, []
        self._told_pages.update(number for copy in copies for number in (copy.to, copy.source))
        alive, here = set(self._pages.values()), set(self._sequences.values())
        freed, ended = sorted(self._told_pages - alive), sorted(self._told_sequences - here)
        message = msgspec.msgpack.encode(SaidPass(runs, list(task.wanted), task.few, tables, copies, freed, ended))
        self._told_pages, self._told_sequences = alive, here
        return message

    def _copied(self, group: int, to: Page, source: Page) -> None:
        self._copies.append(SaidCopy(group, self._page_number(to), self._page_number(source)))

    def _page_number(self, page: Page) -> int:
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
        return rows

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
        for table in said.tables:
            pages = [self._page(table.group, number) if number else None for number in table.pages]
            self._sequence(table.sequence).hold(table.group, pages, 0)

    def release(self) -> None:
        """Let go of everything."""
        self._sequences.clear()
        self._pages.clear()
        self._waiting.clear()

    def _sequence(self, number: int) -> KvSequence:
        found = self._sequences.get(number)
        if found is None:
            if len(self._sequences) >= _MOST_SEQUENCES:
                raise FormatError(f"more than {_MOST_SEQUENCES} sequences")
            found = self._sequences[number] = KvSequence(self._pool, self._capacity)
        return found

    def _page(self, group: int, number: int) -> Page:
        known = self._pages.get(number)
        if known is None:
            (page,) = self._pool.take(self._holder, [group])
            known = self._pages[number] = group, page
        if known[0] != group:
            raise FormatError(f"page {number} of group {known[0]} in a table of group {group}")
        return known[1]


def parsed(message: bytes) -> SaidPass:
    """A message of the head's. FormatError for one that no head says."""
    if len(message) > MOST_MESSAGE_BYTES:
        raise FormatError(f"a message of {len(message)} bytes")
    try:
        return msgspec.msgpack.decode(message, type=SaidPass)
    except msgspec.DecodeError as error:
        raise FormatError(f"not a pass: {error}") from None
