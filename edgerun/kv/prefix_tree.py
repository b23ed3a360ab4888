"""Beginnings that several sequences have in common: pages by the tokens that they were made of.

A node is a page of every group of layers, reached by the tokens of all pages before it. So whoever asks with the same
tokens gets the same pages, holds them together with the tree, and copies the last one when it writes on in it
(RadixAttention, Zheng et al. 2024, at the size of a page). Only the last page of what was remembered may be filled in
part, and only a part of the last page of what is recalled may be used.

Of a group with a window a node may have no page: it holds those that were still there. A beginning is good for as many
tokens as all that its next position would see is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv.groups import Group
from edgerun.kv.page import Page

Tokens = tuple[int, ...]
Pages = Sequence[Sequence[Page | None]]  # of every group, those of positions 0 and on

LEAST_SHARED = 32  # tokens: for fewer nothing is recalled, since a page must be copied to go on in it


class _Node:
    """A page of every group, or None, of the positions that `tokens` stand at. It does not know its parent: what is let
    go of is free at once, without the collector."""

    __slots__ = ("children", "pages", "tokens", "used")

    def __init__(self, tokens: Tokens, pages: list[Page | None]) -> None:
        self.tokens = tokens
        self.pages = pages
        self.children: dict[Tokens, _Node] = {}
        self.used = 0  # when, by the tree's clock


class PrefixTree:
    """What was remembered of all sequences of a model. When more is, what was not used for longest goes, until what
    nobody else holds takes `limit_bytes` at most."""

    def __init__(self, groups: Sequence[Group], limit_bytes: int, held_by_others: Callable[[], set[Page]]) -> None:
        self.limit_bytes = limit_bytes
        self._held_by_others = held_by_others
        self._groups = groups
        self._root = _Node((), [])
        self._clock = 0

    @property
    def n_bytes(self) -> int:
        """Of the pages held, those that others hold too among them."""
        return sum(page.n_bytes for page in self.held_pages())

    def held_pages(self) -> Iterator[Page]:
        """Each once."""
        for _, node in self._nodes():
            yield from (page for page in node.pages if page is not None)

    def remember(self, tokens: Sequence[int], pages: Pages) -> None:
        """Hold the pages of a sequence that begins with `tokens`, all of which they hold but what windows let go of."""
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
                    del node.children[key]  # the same page when it was not as full
            elif len(part) == KEYS_PER_PAGE:
                for number, page in enumerate(mine):
                    if known.pages[number] is None and page is not None:
                        page.promise(len(part))
                        known.pages[number] = page
            known.used = self._clock
            node = known
        others = self._held_by_others()
        mine_alone = sum(page.n_bytes for page in self.held_pages() if page not in others)
        self._evict(mine_alone - self.limit_bytes, others)

    def recall(self, tokens: Sequence[int]) -> tuple[int, list[list[Page | None]]]:
        """The longest beginning of `tokens` that one can go on from, and its pages of every group; (0, []) for none."""
        path, length = self._longest(tokens)
        self._clock += 1
        for node in path:
            node.used = self._clock
        while length >= LEAST_SHARED:
            if self._can_go_on(path, length):
                count = -(-length // KEYS_PER_PAGE)
                pages = [[node.pages[number] for node in path[:count]] for number in range(len(self._groups))]
                for number, group in enumerate(self._groups):
                    first = group.first_seen(length) // KEYS_PER_PAGE
                    pages[number][:first] = [None] * min(first, count)
                return length, pages
            length = (length - 1) // KEYS_PER_PAGE * KEYS_PER_PAGE
        return 0, []

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

    def _can_go_on(self, path: Sequence[_Node], length: int) -> bool:
        count = -(-length // KEYS_PER_PAGE)
        return all(
            node.pages[number] is not None
            for number, group in enumerate(self._groups)
            for node in path[group.first_seen(length) // KEYS_PER_PAGE : count]
        )

    def _nodes(self) -> Iterator[tuple[_Node, _Node]]:
        """(parent, node) of all but the root."""
        waiting = [(self._root, node) for node in self._root.children.values()]
        while waiting:
            parent, node = waiting.pop()
            yield parent, node
            waiting += [(node, child) for child in node.children.values()]

    def _evict(self, n_bytes: int, others: set[Page]) -> None:
        """Leaves, those not used for longest first, until so many bytes are let go of that are none of the others'."""
        while n_bytes > 0:
            leaves = [(parent, node) for parent, node in self._nodes() if not node.children]
            if not leaves:
                return
            parent, oldest = min(leaves, key=lambda pair: pair[1].used)
            del parent.children[oldest.tokens]
            n_bytes -= sum(page.n_bytes for page in oldest.pages if page is not None and page not in others)


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
