"""Sums over ranks as launches of a recording: see `sum_abi`."""

from __future__ import annotations

from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address
from edgerun.kernels.program import I64
from edgerun.kernels.sum_abi import SumRanks


def lay_out_sum(launcher: Launcher, steps: I64, state: I64, numbers: int) -> None:
    """See `recording.Recording.lay_out_sum`."""
    arguments = SumRanks(address(steps), len(steps), address(state), launcher.halt_address, numbers)
    launcher.note(launcher.laid_out("sum_ranks", arguments, 1, 1))
    for memory in (steps, state):
        launcher.keep(memory)
