from __future__ import annotations

import pytest

from edgerun.events import Progress
from edgerun.kernels.isa import ISAS
from edgerun.planning import kernel_sets
from edgerun.planning.kernel_sets import measure_sets


def test_a_single_set_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_sets, "candidates", lambda: [ISAS["portable"]])
    monkeypatch.delattr(kernel_sets, "measure_products")
    assert measure_sets() == {"portable": 1.0}


def test_sets_are_compared_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates are made up, the rest is as it is: how fast this machine is, no test can know."""
    rates = {16: (8e9, 4e12), 8: (2e9, 1e12)}
    monkeypatch.setattr(kernel_sets, "candidates", lambda: [ISAS["avx512"], ISAS["portable"]])

    class Loaded:
        def __init__(self, name: str) -> None:
            self.lanes = ISAS[name].lanes

        def close(self) -> None:
            closed.append(self.lanes)

    closed: list[int] = []
    monkeypatch.setattr(kernel_sets, "load_kernels", lambda name, **_: Loaded(name))
    monkeypatch.setattr(
        kernel_sets,
        "measure_products",
        lambda kernels, type, cols, sizes: kernel_sets.ProductRates(*rates[kernels.lanes]),
    )
    events: list[object] = []
    assert measure_sets(events=events.append) == {"avx512": 1.0, "portable": 0.25}
    assert closed == [16, 8]
    assert [each.done for each in events if isinstance(each, Progress)] == [0, 1, 2]
