"""Layers whose keys and values live and go together: all that see equally far.

Of a layer with a window only the last positions are ever looked at again, so its group keeps few pages however long a
sequence is. Every group has pages of its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgerun.errors import UnsupportedError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE, first_seen
from edgerun.kernels.kv_formats import F16, IN_KEYS, KvFormat
from edgerun.kernels.pages import LayerLayout

SLACK = 256  # positions behind a window that are kept, so that the last words can be taken back


@dataclass(frozen=True)
class KvLayer:
    """What one layer keeps of a position.

    window: how many positions it sees, 0 for all; chunked: those of its own stretch of so many. kept_first: so many of
    the first positions are seen whatever the window. in_keys: values are the last dimensions of the keys, and not kept
    apart.
    """

    kv_heads: int
    head_dim: int
    head_dim_v: int
    window: int = 0
    chunked: bool = False
    in_keys: bool = False
    kept_first: int = 0


@dataclass(frozen=True)
class KvOptions:
    """How a model's keys and values are kept."""

    keys: KvFormat = F16
    values: KvFormat = F16


@dataclass(frozen=True)
class Group:
    """Layers with one window, ascending, and where each lies in a page."""

    window: int
    layers: tuple[int, ...]
    layouts: tuple[LayerLayout, ...]
    chunked: bool = False
    kept_first: int = 0

    @property
    def page_bytes(self) -> int:
        """Of one page."""
        return self.layouts[-1].end

    def first_seen(self, position: int) -> int:
        """The first position that a row at `position`, or a later one, sees."""
        return first_seen(position + 1, self.window, self.chunked)

    def first_kept(self, length: int) -> int:
        """The first page that a sequence of `length` positions keeps when it grows."""
        return max(0, self.first_seen(length) - SLACK) // KEYS_PER_PAGE if self.window else 0

    def keeps(self, page: int, length: int) -> bool:
        """Whether a sequence of `length` positions keeps this page when it grows."""
        return page >= self.first_kept(length) or (page == 0 and self.kept_first > 0)

    def seen_pages(self, length: int) -> list[int]:
        """Those that the position after `length` others sees, of what is before it."""
        seen = list(range(self.first_seen(length) // KEYS_PER_PAGE, -(-length // KEYS_PER_PAGE)))
        return [0, *seen] if self.kept_first and seen and seen[0] else seen

    def most_pages(self, positions: int, at_once: int) -> int:
        """That a sequence of so many positions ever holds, if it grows by `at_once` at most."""
        whole = -(-positions // KEYS_PER_PAGE)
        if not self.window:
            return whole
        most = (self.window - 1 + SLACK + at_once - 2) // KEYS_PER_PAGE + 2
        return min(whole, most + (self.kept_first > 0))


def layer_groups(layers: Sequence[KvLayer | None], options: KvOptions | None = None) -> tuple[Group, ...]:
    """One group a window, in the order of their first layers; layers that keep nothing (None) are in none.
    UnsupportedError for heads that cannot be quantised."""
    kept = options or KvOptions()
    found: dict[tuple[int, bool, int], tuple[list[int], list[LayerLayout]]] = {}
    for index, layer in enumerate(layers):
        if layer is None:
            continue
        numbers, layouts = found.setdefault((layer.window, layer.chunked, layer.kept_first), ([], []))
        at = layouts[-1].end if layouts else 0
        keys, values = _formats(layer, kept)
        layouts.append(LayerLayout(layer.kv_heads, layer.head_dim, layer.head_dim_v, keys, values, at))
        numbers.append(index)
    return tuple(
        Group(window, tuple(numbers), tuple(layouts), chunked, kept_first)
        for (window, chunked, kept_first), (numbers, layouts) in found.items()
    )


def _formats(layer: KvLayer, kept: KvOptions) -> tuple[KvFormat, KvFormat]:
    if not layer.in_keys:
        return kept.keys, kept.values
    if not (kept.keys.is_plain and kept.values.is_plain):
        raise UnsupportedError(f"latent attention keeps one vector of a position in f16, not in {kept.keys.name}")
    return kept.keys, IN_KEYS


def sequence_bytes(groups: Sequence[Group], positions: int, at_once: int) -> int:
    """The most that a sequence of so many positions holds, if it grows by `at_once` at most."""
    return sum(group.page_bytes * group.most_pages(positions, at_once) for group in groups)
