"""Every implementation that this processor can run, and the wide code paths on narrow registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgerun import paths
from edgerun.events import ignore
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.interface import Kernels
from edgerun.kernels.isa import ISAS, Isa, runs_here
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels

# The 16-lane layout and code of AVX-512, with the dot product in plain LLVM: all of it but two instructions is
# tested on any processor.
WIDE = Isa("wide", 16, "llvm", ())
IMPLEMENTATIONS = [isa for isa in [*ISAS.values(), WIDE] if runs_here(isa)]


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=lambda isa: isa.name)
def simd(request: pytest.FixtureRequest) -> Iterator[SimdKernels]:
    cache = KernelCache(request.param, paths.cache_dir() / "kernels")
    kernels = SimdKernels(request.param, cache, 2, ignore)
    yield kernels
    kernels.close()


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return ReferenceKernels()
