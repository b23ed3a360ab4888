"""Blocks of a page in one piece: what is kept of KEYS positions, as bytes that can be carried elsewhere.

In a page a block's bytes lie apart, head by head (`kernels.pages`). In one piece those of a group follow each other:
layer by layer the keys of all heads, then the values of all heads. A head's bytes are the same in every page that has
it, whatever the format, so what some device needs is picked out of a block of all heads, and put together to one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kv.groups import Group
from edgerun.kv.page import Page

U8 = NDArray[np.uint8]
Heads = Sequence[Sequence[int]]  # of each layer of a group, those of all heads that somebody has, in his order

BLOCKS = KEYS_PER_PAGE // KEYS  # of a page


def block_bytes(group: Group) -> int:
    """Of a block of the group's pages."""
    return sum(heads * n_bytes for heads, n_bytes in _form(group))


def part_bytes(group: Group, heads: Heads) -> int:
    """Of a block of these of the group's heads."""
    return sum(count * n_bytes for count, n_bytes in _part_form(group, heads))


def read_block(page: Page, group: Group, number: int) -> U8:
    """A block of a page, (block_bytes,): a copy."""
    block = np.empty(block_bytes(group), np.uint8)
    for out, strip in zip(_strips(block, _form(group)), _page_strips(page, group, number), strict=True):
        out[...] = strip
    return block


def write_block(page: Page, group: Group, number: int, block: U8) -> None:
    """What `read_block` gave becomes a block of this page."""
    for strip, out in zip(_strips(block, _form(group)), _page_strips(page, group, number), strict=True):
        out[...] = strip


def pick_heads(block: U8, group: Group, heads: Heads) -> U8:
    """Of a block of all heads (of `group`'s) one of these, (part_bytes,)."""
    form = _part_form(group, heads)
    part = np.empty(sum(count * n_bytes for count, n_bytes in form), np.uint8)
    twice = [each for each in heads for _ in range(2)]
    for out, strip, some in zip(_strips(part, form), _strips(block, _form(group)), twice, strict=True):
        out[...] = strip[list(some)]
    return part


def put_heads(part: U8, block: U8, group: Group, heads: Heads) -> None:
    """What `pick_heads` gave becomes part of a block of all heads."""
    twice = [each for each in heads for _ in range(2)]
    strips = zip(_strips(part, _part_form(group, heads)), _strips(block, _form(group)), twice, strict=True)
    for strip, out, some in strips:
        out[list(some)] = strip


@lru_cache(maxsize=64)
def _form(group: Group) -> tuple[tuple[int, int], ...]:
    """(heads, bytes of each in a block) of the keys, then the values, of one layer after another."""
    strides = [(each.kv_heads, size) for each in group.layouts for size in (each.keys_stride, each.values_stride)]
    return tuple((heads, size // BLOCKS) for heads, size in strides)


def _part_form(group: Group, heads: Heads) -> list[tuple[int, int]]:
    sizes = [n_bytes for _, n_bytes in _form(group)]
    return [(len(heads[at // 2]), n_bytes) for at, n_bytes in enumerate(sizes)]


def _strips(block: U8, form: Sequence[tuple[int, int]]) -> Iterator[U8]:
    """(heads, bytes) of the keys, then the values, of one layer after another: not copies."""
    at = 0
    for heads, n_bytes in form:
        yield block[at : at + heads * n_bytes].reshape(heads, n_bytes)
        at += heads * n_bytes


def _page_strips(page: Page, group: Group, number: int) -> Iterator[U8]:
    """The same of a page's block."""
    content = page.content
    for layout in group.layouts:
        for at, stride in ((layout.keys_at, layout.keys_stride), (layout.values_at, layout.values_stride)):
            heads = content[at : at + layout.kv_heads * stride]
            yield heads.reshape(layout.kv_heads, BLOCKS, stride // BLOCKS)[:, number]
