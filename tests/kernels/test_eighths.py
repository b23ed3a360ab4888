"""Numbers for the wire: what kernels write and add is numpy's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.eighths import SPARE_BYTES, PlainRounding, eighths_bytes, read_eighths
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.isas import KERNELS_DIR, LANES


@pytest.fixture(scope="module", params=LANES, ids=lambda isa: isa.name)
def kernels(request):
    found = SimdKernels(request.param, KernelCache(request.param, KERNELS_DIR), 2)
    yield found
    found.close()


def numbers(n, seed):
    """Of many sizes, whole blocks of zeros and of what is too small, and halves that round to even."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * np.exp(rng.uniform(-30, 30, n))).astype(np.float32)
    x[: n // 4] = rng.integers(-127, 128, n // 4) / np.float32(2)
    x[n // 2 : n // 2 + 64] = 0
    x[n // 2 + 64 : n // 2 + 128] *= np.float32(1e-38)
    return x


def room(n):
    return np.zeros(eighths_bytes(n) + SPARE_BYTES, np.uint8)


@pytest.mark.parametrize("n", (1, 31, 32, 4096, 131_072 + 17))
def test_the_same_bits_as_numpy(kernels, n):
    ranks = [numbers(n, seed) for seed in range(4)]
    plain, parts, expected = PlainRounding(), [room(n) for _ in ranks], [room(n) for _ in ranks]
    for x, part, other in zip(ranks, parts, expected, strict=True):
        kernels.round_eighths(x, part)
        plain.round_eighths(x, other)
        assert (part[:-SPARE_BYTES] == other[:-SPARE_BYTES]).all()
    for count in (1, 3, 4):
        for rounded, other in ((None, None), (room(n), room(n))):
            found, wanted = np.empty(n, np.float32), np.empty(n, np.float32)
            kernels.sum_eighths(parts[:count], found, rounded)
            plain.sum_eighths(expected[:count], wanted, other)
            assert (found.view(np.uint32) == wanted.view(np.uint32)).all()
            assert rounded is None or (rounded[:-SPARE_BYTES] == other[:-SPARE_BYTES]).all()


@pytest.mark.parametrize("odd", (np.nan, np.inf, -np.inf))
def test_what_is_not_finite_makes_its_block_so(kernels, odd):
    x = np.ones(96, np.float32)
    x[40] = odd
    for each in (kernels, ReferenceKernels()):
        out, read = room(96), np.empty(96, np.float32)
        each.round_eighths(x, out)
        read_eighths(out[:-SPARE_BYTES], read)
        assert np.isnan(read[32:64]).all() and (read[:32] == 1).all() and (read[64:] == 1).all()


def test_other_arrays_are_refused(kernels):
    x = np.ones(64, np.float32)
    for out in (room(64)[:-1], room(32), room(64).view(np.int8), np.repeat(room(64), 2)[::2]):
        with pytest.raises(UsageError, match="bytes"):
            kernels.round_eighths(x, out)
    with pytest.raises(UsageError, match="bytes"):
        kernels.sum_eighths([], x)
    with pytest.raises(UsageError, match="bytes"):
        kernels.sum_eighths([room(64), room(96)], x)
