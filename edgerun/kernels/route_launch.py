"""A token's experts: checks and arguments."""

from __future__ import annotations

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import Route, Weigh
from edgerun.kernels.interface import F32, I32
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants
from edgerun.kernels.routing import ROUTER_KINDS, Routing, check_routing

_ROUTE_GRAIN = 4  # rows
_WEIGH_GRAIN = 16  # rows


def route(launcher: Launcher, logits: F32, routing: Routing, ids: I32, weights: F32 | None, bias: F32 | None) -> None:
    """See `interface.Kernels.route`."""
    rows, experts = logits.shape
    check_routing(routing, experts)
    wanted = (rows, routing.used)
    if (
        ids.shape != wanted
        or ids.dtype != np.int32
        or (weights is not None and (weights.shape != wanted or not weights.flags.c_contiguous))
        or (bias is not None and bias.shape != (experts,))
        or not (logits.flags.c_contiguous and ids.flags.c_contiguous)
    ):
        shapes = [None if each is None else each.shape for each in (ids, weights, bias)]
        raise UsageError(f"{routing.used} of {experts} experts for {rows} rows into {shapes}")
    work = np.empty((rows, 3, experts), np.float32)
    launcher.keep(work)
    arguments = Route(
        logits=address(logits),
        bias=0 if bias is None else address(bias),
        ids=address(ids),
        weights=0 if weights is None else address(weights),
        work=address(work),
        experts=experts,
        used=routing.used,
        kind=ROUTER_KINDS[routing.kind],
        renormalise=int(routing.renormalise),
        scale=constants(routing.scale),
        groups=routing.groups,
        groups_used=routing.groups_used,
    )
    launcher.launch("route", arguments, rows, _ROUTE_GRAIN)


def weigh(launcher: Launcher, x: F32, weight: F32, out: F32) -> None:
    """See `interface.Kernels.weigh`."""
    rows, cols = x.shape
    if weight.shape != (cols,) or out.shape != (rows, 1) or not (x.flags.c_contiguous and out.flags.c_contiguous):
        raise UsageError(f"{x.shape} cannot be weighed by {weight.shape} into {out.shape}")
    launcher.launch("weigh", Weigh(address(x), address(weight), address(out), cols), rows, _WEIGH_GRAIN)
