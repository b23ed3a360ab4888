"""Which instruction set "auto" is, where a processor runs several: the best by `isa.ISAS`, unless this machine was
measured and another was faster (`planning.kernel_sets` measures; `edgerun doctor` asks it to, once).

What was measured is kept with the stamp of the processor and the kernels that it holds for; another machine that shares
the cache directory, or other kernels, go by the order again until they are measured.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from edgerun import paths
from edgerun.device.cpu import cpu_name
from edgerun.device.cpu_features import cpu_features
from edgerun.kernels.compile import sources_digest
from edgerun.kernels.isa import ISAS, Isa, find, runs_here

LEAD = 1.03  # how much faster than the first of the order another must be: less is noise


def choose(name: str) -> Isa:
    """The instruction set called `name`; for "auto" what was measured to be the fastest here, else the best by the
    order. Raises UsageError when it cannot run here."""
    if name != "auto":
        return find(name)
    speeds = read_speeds() or {}
    return ISAS[fastest(speeds)] if speeds else candidates()[0]


def candidates() -> list[Isa]:
    """The sets that may be the fastest here, best first by the order: all that run, but plain LLVM where there is
    another."""
    found = [isa for isa in ISAS.values() if runs_here(isa)]
    return found[:1] + [isa for isa in found[1:] if isa.needs]


def fastest(speeds: Mapping[str, float]) -> str:
    """Of relative speeds by name, in the order of `ISAS`: the first, unless another is faster by more than noise."""
    order = [name for name in ISAS if name in speeds]
    best = max(order, key=lambda name: speeds[name])
    return best if speeds[best] > LEAD * speeds[order[0]] else order[0]


def speeds_path() -> Path:
    """Where they are kept."""
    return paths.cache_dir() / "kernel_sets.json"


def read_speeds() -> dict[str, float] | None:
    """What `write_speeds` kept of this machine; None when there is nothing, nothing that can be believed, or nothing
    that makes sense."""
    try:
        said = json.loads(paths.read_kept(speeds_path()))
        if said["stamp"] != _stamp():
            return None
        speeds = {str(name): float(speed) for name, speed in said["speeds"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    run = {isa.name for isa in ISAS.values() if runs_here(isa)}
    sensible = speeds and run.issuperset(speeds) and all(s > 0 and math.isfinite(s) for s in speeds.values())
    return speeds if sensible else None


def write_speeds(speeds: Mapping[str, float]) -> None:
    """Keep relative speeds by name. OSError when the folder cannot be written or believed."""
    said = {"stamp": _stamp(), "speeds": dict(speeds)}
    paths.write_kept(speeds_path(), [json.dumps(said).encode()])


def _stamp() -> str:
    said = f"{sources_digest()} {cpu_name()} {sorted(cpu_features())}"
    return hashlib.sha256(said.encode()).hexdigest()[:24]
