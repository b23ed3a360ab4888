"""Every implementation that this processor can run, as one fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgerun.kernels.compile import KernelCache
from edgerun.kernels.interface import Kernels
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.isas import IMPLEMENTATIONS, KERNELS_DIR, LANES, SOME, TYPICAL, needed_kernels

_MANY = 1000  # tests of this folder: with fewer, they compile what they need


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`simd` is a set for each number of lanes; in modules about products, which say so by `SETS`, it is every set."""
    if "simd" in metafunc.fixturenames:
        sets = getattr(metafunc.module, "SETS", LANES)
        metafunc.parametrize("simd", sets, ids=lambda isa: isa.name, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave types out whose products a set makes as it does those of a typical one (`isas`)."""
    if config.getoption("--every-type"):
        return
    kept, left = [], []
    for item in items:
        values = getattr(item, "callspec", None) and item.callspec.params
        of_set, of_type = (values or {}).get("simd", (values or {}).get("multiplying")), (values or {}).get("type")
        alike = of_set is not None and of_set not in SOME and of_type is not None and of_type not in TYPICAL
        (left if alike else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before many tests: compile all that they need in one go, on all cores. One by one, as tests come to them, a
    process compiles while the others wait for its lock."""
    here = sum("tests/kernels/" in item.nodeid for item in session.items)
    if here < _MANY or session.config.option.collectonly:
        return
    for isa in IMPLEMENTATIONS:
        cache, names = KernelCache(isa, KERNELS_DIR), needed_kernels(isa)
        if cache.missing(names):
            cache.prepare(names)


@pytest.fixture(scope="session")
def simd(request: pytest.FixtureRequest) -> Iterator[SimdKernels]:
    cache = KernelCache(request.param, KERNELS_DIR)
    kernels = SimdKernels(request.param, cache, 2)
    yield kernels
    kernels.close()


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return ReferenceKernels()
