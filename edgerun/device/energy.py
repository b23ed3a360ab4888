"""Joules, where the machine counts them: Intel's and AMD's RAPL counters of the whole package."""

from __future__ import annotations

from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Energy of all packages since it was made. `reason`: why there is none to read, or nothing."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._zones: list[tuple[Path, int]] = []
        self.reason = "this machine has no energy counter that edgerun knows (RAPL)"
        for zone in sorted(root.glob("intel-rapl:*")):
            if zone.name.count(":") == 1:
                try:
                    self._zones.append((zone, int((zone / "max_energy_range_uj").read_text())))
                    self._read()
                except PermissionError:
                    self._zones.clear()
                    self.reason = f"{zone / 'energy_uj'} may only be read by root"
                    break
                except (OSError, ValueError):
                    self._zones.pop()
        if self._zones:
            self.reason = ""
        self._began = self._read()

    def joules(self) -> float | None:
        """Since the last call, or since the meter was made; None where nothing counts."""
        if not self._zones:
            return None
        now, before = self._read(), self._began
        self._began = now
        spent = 0
        for (_, most), later, earlier in zip(self._zones, now, before, strict=True):
            spent += later - earlier if later >= earlier else later + most - earlier  # it wraps
        return spent / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone, _ in self._zones]
