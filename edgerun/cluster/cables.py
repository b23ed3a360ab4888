"""What was measured of the way between this device and each other, kept for a day: to measure it takes a megabyte in
each direction, and a start that sends nothing else shall be small.

What is kept is used while the other device is where it was, answers about as fast as then, and gets 32 KiB about as
fast: what is sent to find out is a tenth of what measuring takes.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from edgerun.cluster.control import Amount, Text
from edgerun.errors import FormatError
from edgerun.paths import read_kept, write_kept
from edgerun.trust import open_folder

_KEPT_S = 24 * 3600.0
_TIMES = 2.0  # that an answer, or the bytes, may be slower or faster than they were,
_MORE_S = 3e-4  # and what a busy processor adds to it
PROBE_BYTES = 1 << 15


class Cable(msgspec.Struct, frozen=True):
    """Between the head and one other device. host: where that was; measured_s: since 1970; hop_s: from a small
    message's sending to its arrival; byte_s: for each byte more; is_duplex: not longer in both directions at once."""

    host: Text
    measured_s: Amount
    hop_s: Amount
    byte_s: Amount
    is_duplex: bool


def is_still(cable: Cable, host: str, hop_s: float, probe_s: float, now_s: float) -> bool:
    """Whether what was measured holds for a device that is at `host` now, answers in `hop_s`, and has PROBE_BYTES so
    much later than a small message."""
    is_fresh = cable.host == host and 0 <= now_s - cable.measured_s < _KEPT_S
    return is_fresh and _is_near(cable.hop_s, hop_s) and _is_near(PROBE_BYTES * cable.byte_s, probe_s)


def _is_near(then_s: float, now_s: float) -> bool:
    quick, slow = sorted((then_s, now_s))
    return slow <= _TIMES * quick + _MORE_S


class Cables:
    """The folder of them, each under the other device's fingerprint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, fingerprint: str, host: str, hop_s: float, probe_s: float) -> Cable | None:
        """What is known of the way to a device, if it still holds: see `is_still`."""
        with contextlib.suppress(OSError, FormatError, msgspec.DecodeError):
            cable = msgspec.msgpack.decode(read_kept(self._folder / fingerprint), type=Cable)
            if is_still(cable, host, hop_s, probe_s, time.time()):
                return cable
        return None

    def keep(self, fingerprint: str, cable: Cable) -> None:
        """For the next start."""
        with contextlib.suppress(OSError):  # measured again then
            write_kept(self._folder / fingerprint, [msgspec.msgpack.encode(cable)])

    def clear(self) -> None:
        """Forget them all. OSError, UntrustedError."""
        with open_folder(self._folder, make=True) as folder:
            for path in self._folder.iterdir():
                folder.remove(path.name)
