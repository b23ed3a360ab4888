"""Intel's and AMD's RAPL counters, by Linux's powercap: packages, memory, or the whole platform (psys).

https://docs.kernel.org/power/powercap/powercap.html. A counter of microjoules begins again at `max_energy_range_uj`,
after some minutes to an hour of work: it must be read once within that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import NotFoundError, ReadError, UntrustedError
from edgerun.profiling.energy.meter import Reading

POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Zone:
    name: str
    path: Path
    range_uj: int
    last_uj: int
    spent_uj: int = 0


class RaplSource:
    """`Source` of all packages here. NotFoundError where there is no counter, UntrustedError (with advice) where it may
    not be read."""

    is_estimate = False

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[_Zone] = []
        for path in sorted(root.glob("intel-rapl:*")):
            zone = _open(path)
            if zone is not None:
                self._zones.append(zone)
        names = [zone.name for zone in self._zones]
        packages = [name for name in names if name.startswith("package")]
        if not packages and "psys" not in names:
            raise NotFoundError("this machine has no energy counter that edgerun can read (RAPL)")
        whole = "psys" in names
        self._total = ["psys"] if whole else [*packages, *(name for name in names if name.startswith("dram"))]
        self.method = "RAPL " + (
            "platform" if whole else "package + dram" if len(self._total) > len(packages) else "package"
        )

    def read(self) -> Reading:
        for zone in self._zones:
            now = _counter(zone.path)
            zone.spent_uj += (
                now - zone.last_uj if now >= zone.last_uj else now + zone.range_uj - zone.last_uj
            )  # it wraps
            zone.last_uj = now
        domains: dict[str, float] = {}
        for zone in self._zones:
            domains[zone.name] = domains.get(zone.name, 0.0) + zone.spent_uj / 1e6
        return Reading(sum(domains[name] for name in dict.fromkeys(self._total)), domains)

    def close(self) -> None:
        """Nothing is open."""


def _open(path: Path) -> _Zone | None:
    """A zone with a counter; None for one that is none or is about to go."""
    try:
        name = (path / "name").read_text().strip()
        return _Zone(name, path, int((path / "max_energy_range_uj").read_text()), _counter(path))
    except UntrustedError:
        raise
    except (OSError, ValueError):
        return None


def _counter(path: Path) -> int:
    file = path / "energy_uj"
    try:
        return int(file.read_text())
    except PermissionError as error:
        raise UntrustedError(
            f"{file} may only be read by root; `sudo chmod a+r {file.parent.parent}/intel-rapl:*/energy_uj` allows it "
            "until the next start of the machine"
        ) from error
    except (OSError, ValueError) as error:
        raise ReadError(f"{file} cannot be read: {error}") from error
