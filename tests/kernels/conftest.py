"""Every implementation that this processor can run, as one fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgerun.kernels.compile import KernelCache
from edgerun.kernels.interface import Kernels
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.isas import IMPLEMENTATIONS, KERNELS_DIR


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=lambda isa: isa.name)
def simd(request: pytest.FixtureRequest) -> Iterator[SimdKernels]:
    cache = KernelCache(request.param, KERNELS_DIR)
    kernels = SimdKernels(request.param, cache, 2)
    yield kernels
    kernels.close()


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return ReferenceKernels()
