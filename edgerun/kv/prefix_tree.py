"""Beginnings that several sequences have in common: pages by the tokens that they were made of.

A node is a page of every group of layers, reached by the tokens of all pages before it. So whoever asks with the same
tokens gets the same pages, holds them together with the tree, and copies the last one when it writes on in it
(RadixAttention, Zheng et al. 2024, at the size of a page). Only the last page of what was remembered may be filled in
part, and only a part of the last page of what is recalled may be used.

Of a group with a window a node may have no page: it holds those that were still there. A beginning is good for as many
tokens as all that its next position would see is there. A model with recurrent states goes on only from where some are
held: nodes have those of checkpoints, by the tokens of theirs that they come after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv.groups import Group
from edgerun.kv.page import Page
from edgerun.kv.states import StateBlock

Tokens = tuple[int, ...]
Pages = Sequence[Sequence[Page | None]]  # of every group, those of positions 0 and on

_STATES_SHARE = 8  # of what may be remembered, one part in so many is for states
_LEAST_STATES = 4  # blocks, whatever these take
LEAST_SHARED = 32  # tokens: for fewer nothing is recalled, since a page must be copied to go on in it


class _Node:
    """A page of every group, or None, of the positions that `tokens` stand at. It does not know its parent: what is let
    go of is free at once, without the collector."""

    __slots__ = ("children", "pages", "states", "states_used", "tokens", "used")

    def __init__(self, tokens: Tokens, pages: list[Page | None]) -> None:
        self.tokens = tokens
        self.pages = pages
        self.states: dict[int, StateBlock] = {}
        self.states_used: dict[int, int] = {}  # when, by the tree's clock
        self.children: dict[Tokens, _Node] = {}
        self.used = 0  # when, by the tree's clock

    def held(self) -> Iterator[Page | StateBlock]:
        """Pages and state blocks."""
        yield from (page for page in self.pages if page is not None)
        yield from self.states.values()


class PrefixTree:
    """What was remembered of all sequences of a model. When more is, what was not used for longest goes, until what
    nobody else holds takes `limit_bytes` at most. state_bytes: of a block of
    states, if one can go on only where some are held."""

    def __init__(
        self,
        groups: Sequence[Group],
        limit_bytes: int,
        held_by_others: Callable[[], set[Page | StateBlock]],
        *,
        state_bytes: int = 0,
    ) -> None:
        self.limit_bytes = limit_bytes
        self._state_bytes = state_bytes
        self._with_states = state_bytes > 0
        self._held_by_others = held_by_others
        self._groups = groups
        self._root = _Node((), [])
        self._clock = 0

    @property
    def n_bytes(self) -> int:
        """Of the pages and state blocks held, those that others hold too among them."""
        return sum(each.n_bytes for _, node in self._nodes() for each in node.held())

    def held_pages(self) -> Iterator[Page]:
        """Each once."""
        for _, node in self._nodes():
            yield from (page for page in node.pages if page is not None)

    def held_states(self) -> Iterator[StateBlock]:
        """Each once."""
        for _, node in self._nodes():
            yield from node.states.values()

    def remember(self, tokens: Sequence[int], pages: Pages, states: Mapping[int, StateBlock] | None = None) -> None:
        """Hold the pages of a sequence that begins with `tokens`, all of which they hold but what windows let go of.
        states: of its checkpoints, by the tokens that they come after; beyond the last one nothing is of use."""
        states = states or {}
        if self._with_states:
            tokens = tokens[: max((n for n in states if n <= len(tokens)), default=0)]
        self._clock += 1
        node = self._root
        for index, low in enumerate(range(0, len(tokens), KEYS_PER_PAGE)):
            part = tuple(tokens[low : low + KEYS_PER_PAGE])
            mine = [held[index] if index < len(held) else None for held in pages]
            known = next((each for key, each in node.children.items() if key[: len(part)] == part), None)
            if known is None:
                for page in mine:
                    if page is not None:
                        page.promise(len(part))
                known = _Node(part, mine)
                known.used = self._clock
                node.children[part] = known
                for key in [key for key in node.children if len(key) < len(part) and part[: len(key)] == key]:
                    shorter = node.children.pop(key)  # the same page when it was not as full
                    known.states |= shorter.states
                    known.states_used |= shorter.states_used
            elif len(part) == KEYS_PER_PAGE:
                for number, page in enumerate(mine):
                    if known.pages[number] is None and page is not None:
                        page.promise(len(part))
                        known.pages[number] = page
            for n, block in states.items():
                if low < n <= low + len(part) and n - low not in known.states:
                    block.is_shared = True
                    known.states_used[n - low] = self._clock
                    known.states[n - low] = block
            known.used = self._clock
            node = known
        self._forget_states()
        others = self._held_by_others()
        mine_alone = sum(each.n_bytes for _, node in self._nodes() for each in node.held() if each not in others)
        self._evict(mine_alone - self.limit_bytes, others)

    def recall(self, tokens: Sequence[int]) -> tuple[int, list[list[Page | None]], dict[int, StateBlock]]:
        """The longest beginning of `tokens` that one can go on from, its pages of every group, and its states, by the
        tokens that they come after; (0, [], {}) for none."""
        path, length = self._longest(tokens)
        self._clock += 1
        for node in path:
            node.used = self._clock
        for end in self._ends(path, length):
            if self._can_go_on(path, end):
                some = path[: -(-end // KEYS_PER_PAGE)]
                seen = [set(group.seen_pages(end)) for group in self._groups]
                pages = [
                    [node.pages[number] if index in seen[number] else None for index, node in enumerate(some)]
                    for number in range(len(self._groups))
                ]
                if self._with_states:
                    some[-1].states_used[end - (len(some) - 1) * KEYS_PER_PAGE] = self._clock
                return end, pages, {n: block for n, block in _states_of(path) if n <= end}
        return 0, [], {}

    def make_room(self, n_bytes: int) -> None:
        """Let go of what was not used for longest, until `n_bytes` are free by it."""
        self._evict(n_bytes, self._held_by_others())

    def release(self) -> None:
        """Forget everything."""
        self._root.children.clear()

    def lay_out(self, groups: Sequence[Group]) -> None:
        """Forget everything; from now on pages are of these groups."""
        self.release()
        self._groups = groups

    def check_integrity(self) -> None:
        """AssertionError for a tree that cannot be. For tests."""
        for parent, node in self._nodes():
            assert parent.children[node.tokens] is node
            assert 0 < len(node.tokens) <= KEYS_PER_PAGE and (not node.children or len(node.tokens) == KEYS_PER_PAGE)
            assert node.used <= (self._clock if parent is self._root else parent.used)
            assert all(0 < n <= len(node.tokens) and block.is_shared for n, block in node.states.items())
            for group, page in zip(self._groups, node.pages, strict=True):
                assert page is None or (page.n_bytes == group.page_bytes and page.promised >= len(node.tokens))
                assert page is not None or group.window, "a page that is always held is missing"

    def _longest(self, tokens: Sequence[int]) -> tuple[list[_Node], int]:
        """The nodes that tokens lead through, and how many tokens they have in common."""
        path: list[_Node] = []
        node = self._root
        for low in range(0, len(tokens), KEYS_PER_PAGE):
            part = tuple(tokens[low : low + KEYS_PER_PAGE])
            known = node.children.get(part)
            if known is None or len(part) < KEYS_PER_PAGE:
                alike = [(_common(part, key), each) for key, each in node.children.items()]
                common, best = max(alike, key=lambda pair: pair[0], default=(0, None))
                return (path, low) if best is None or not common else ([*path, best], low + common)
            path.append(known)
            node = known
        return path, len(path) * KEYS_PER_PAGE

    def _ends(self, path: Sequence[_Node], length: int) -> list[int]:
        """Where one might go on within the first `length` tokens, the longest first."""
        if self._with_states:
            ends = sorted((n for n, _ in _states_of(path) if n <= length), reverse=True)
        else:
            ends = [length, *range((length - 1) // KEYS_PER_PAGE * KEYS_PER_PAGE, 0, -KEYS_PER_PAGE)]
        return [n for n in ends if n >= LEAST_SHARED]

    def _can_go_on(self, path: Sequence[_Node], length: int) -> bool:
        return all(
            path[index].pages[number] is not None
            for number, group in enumerate(self._groups)
            for index in group.seen_pages(length)
        )

    def _nodes(self) -> Iterator[tuple[_Node, _Node]]:
        """(parent, node) of all but the root."""
        waiting = [(self._root, node) for node in self._root.children.values()]
        while waiting:
            parent, node = waiting.pop()
            yield parent, node
            waiting += [(node, child) for child in node.children.values()]

    def _forget_states(self) -> None:
        """Those not used for longest, while all take more than their share: a long path has many, and its end is used
        as often as its beginning."""
        held = [(node.states_used[n], n, node) for _, node in self._nodes() for n in node.states]
        held.sort(key=lambda each: each[:2])
        most = max(_LEAST_STATES, self.limit_bytes // _STATES_SHARE // max(1, self._state_bytes))
        for _, n, node in held[: max(0, len(held) - most)]:
            del node.states[n], node.states_used[n]

    def _evict(self, n_bytes: int, others: set[Page | StateBlock]) -> None:
        """Leaves, those not used for longest first, until so many bytes are let go of that are none of the others'."""
        while n_bytes > 0:
            leaves = [(parent, node) for parent, node in self._nodes() if not node.children]
            if not leaves:
                return
            parent, oldest = min(leaves, key=lambda pair: pair[1].used)
            del parent.children[oldest.tokens]
            n_bytes -= sum(each.n_bytes for each in oldest.held() if each not in others)


def _states_of(path: Sequence[_Node]) -> Iterator[tuple[int, StateBlock]]:
    """All states along a path of nodes, by the tokens that they come after."""
    for index, node in enumerate(path):
        yield from ((index * KEYS_PER_PAGE + n, block) for n, block in node.states.items())


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
