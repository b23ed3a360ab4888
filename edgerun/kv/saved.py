"""Pages as arrays in a file: `pages.G.I`, (page_bytes,) u8, is the page of group G that holds positions
KEYS_PER_PAGE * I and on, as it lies in memory: nothing is rounded, whatever the format, and nothing computed. `states`,
(block_bytes,) u8, are the recurrent states of the end, if the model has some.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UnsupportedError
from edgerun.formats.checked_tensors import Form
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.page_arrays import write_positions
from edgerun.kernels.pages import LayerPages
from edgerun.kv.groups import Group
from edgerun.kv.page import Page

U8 = NDArray[np.uint8]

STATES = "states"  # of the array that holds a state block


def page_name(group: int, index: int) -> str:
    """Of the array that holds a page."""
    return f"pages.{group}.{index}"


def page_place(name: str) -> tuple[int, int]:
    """The group and the index of a page that is called so."""
    _, group, index = name.split(".")
    return int(group), int(index)


def page_form(group: Group) -> Form:
    """Of a group's pages."""
    return "U8", (group.page_bytes,)


def page_content(page: Page, group: Group, used: int) -> U8:
    """The bytes of a page; where only `used` positions of it are, a copy in which the others are zeros: whatever stands
    there was forgotten, or never was this sequence's."""
    if used >= KEYS_PER_PAGE:
        return page.content
    copy = page.content.copy()
    table = np.array([copy.ctypes.data], np.int64)
    for layout in group.layouts:
        rows = KEYS_PER_PAGE - used, layout.kv_heads
        keys, values = (np.zeros((*rows, dim), np.float32) for dim in (layout.head_dim, layout.head_dim_v))
        with np.errstate(invalid="ignore"):  # what was never written may be no number
            write_positions(LayerPages(table, layout), used, keys, values)
    return copy


def saved_pages(forms: Mapping[str, Form], number: int, group: Group, length: int) -> list[int]:
    """Which pages of a group a file has for a sequence of `length` positions, ascending. UnsupportedError unless they
    are enough to go on from there, and laid out as they are here."""
    found = [index for index in range(-(-length // KEYS_PER_PAGE)) if page_name(number, index) in forms]
    alike = all(forms[page_name(number, index)] == page_form(group) for index in found)
    newest = found[1:] if group.kept_first and found[:2] != [0, 1] else found
    one_after_another = all(b - a == 1 for a, b in pairwise(newest))
    last = -(-length // KEYS_PER_PAGE) - 1
    if not alike or not one_after_another or (length and last not in found) or {*group.seen_pages(length)} - {*found}:
        raise UnsupportedError("its keys and values are kept in another way")
    return found
