"""Packing of chosen rows, and packed rows back to floats: the numbers of `quants.dequantize`, bit for bit."""

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.formats.gguf import GgmlType
from edgerun.formats.quants import dequantize
from edgerun.kernels import layout
from edgerun.kernels.abi import Dequantize
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.kernel_names import dequantize_kernel
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layout import ROW_TYPES
from edgerun.kernels.memory import address
from edgerun.kernels.packer import Packer
from tests.kernels.blocks import filled_blocks, random_blocks
from tests.kernels.isas import KERNELS_DIR, SOME

ROWS, COLS = 21, 512
PACKED = [each for each in FORMATS if each not in ROW_TYPES]


@pytest.fixture(scope="module", params=SOME, ids=lambda isa: isa.name)
def packer(request):
    launcher = Launcher(KernelCache(request.param, KERNELS_DIR), 1)
    yield launcher, Packer(launcher, request.param.lanes)
    launcher.close()


def unpacked(launcher, packer, raw, type):
    packed = packer.pack(raw, type, COLS)
    groups = -(-len(raw) // packer.lanes)
    out = np.full((groups * packer.lanes, COLS), np.nan, np.float32)
    arguments = Dequantize(packed.address, address(out), COLS // type.block_size)
    launcher.launch(dequantize_kernel(type), arguments, groups, 1)
    assert (out[len(raw) :] == 0).all(), "rows that do not exist"
    return out[: len(raw)]


def same(got, want):
    """Bits, but for what is no number."""
    numbers = ~np.isnan(want)
    return np.array_equal(np.isnan(got), ~numbers) and np.array_equal(
        got[numbers].view(np.uint32), want[numbers].view(np.uint32)
    )


@pytest.mark.parametrize("type", PACKED, ids=lambda t: t.name)
def test_the_numbers_of_the_reference(packer, type):
    rng = np.random.default_rng(int(type))
    every = [random_blocks(rng, ROWS, COLS, type)]
    every += [filled_blocks(rng, ROWS, COLS, type, value) for value in (0, 0x7F, 0x80, 0xFF)]
    for raw in every:
        got, want = unpacked(*packer, raw, type), dequantize(raw, type)
        assert np.array_equal(got, want)  # a zero may have another sign
        assert same(got[want != 0], want[want != 0])


@pytest.mark.parametrize("type", PACKED, ids=lambda t: t.name)
def test_whatever_a_file_may_hold(packer, type):
    """Any bytes at all: scales that are infinite, no numbers, the smallest."""
    raw = np.random.default_rng(int(type)).integers(0, 256, (400, type.row_bytes(COLS)), dtype=np.uint8)
    got, want = unpacked(*packer, raw, type), dequantize(raw, type)
    with np.errstate(invalid="ignore"):
        assert same(got + np.float32(0), want + np.float32(0))


@pytest.mark.parametrize("type", FORMATS, ids=lambda t: t.name)
def test_chosen_rows_are_packed_as_if_they_followed_each_other(packer, type):
    _, packer = packer
    rng = np.random.default_rng(int(type))
    raw, chosen = random_blocks(rng, 50, COLS, type), rng.permutation(50)[:ROWS].astype(np.int32)
    rows = np.ascontiguousarray(np.hstack([np.zeros((50, 7), np.uint8), raw, raw[:, :3]]))
    memory = np.full(packer.packed_bytes(type, ROWS, COLS), 0xAA, np.uint8)
    packed = packer.pack_chosen(rows, 7, chosen, type, COLS, memory)
    assert (packed.rows, packed.cols, packed.address) == (ROWS, COLS, address(memory))
    assert np.array_equal(memory, layout.pack(raw[chosen], type, COLS, packer.lanes).reshape(-1))


def test_rows_that_are_not_there_are_not_packed(packer):
    _, packer = packer
    type, rows = GgmlType.Q4_K, np.zeros((5, 300), np.uint8)
    memory = np.zeros(packer.packed_bytes(type, 2, 512), np.uint8)
    good = np.array([4, 0], np.int32)
    packer.pack_chosen(rows, 12, good, type, 512, memory)
    for wrong in (
        (rows, 13, good, type, 512, memory),
        (rows, -1, good, type, 512, memory),
        (rows, 12, good + 1, type, 512, memory),
        (rows, 12, good - 1, type, 512, memory),
        (rows, 12, good.astype(np.int64), type, 512, memory),
        (rows[:, :288], 0, good, type, 512, memory),
        (rows.view(np.int8), 12, good, type, 512, memory),
        (rows, 12, good, type, 512, memory[:-1]),
        (rows, 12, good, type, 768, memory),
    ):
        with pytest.raises(UsageError):
            packer.pack_chosen(*wrong)
