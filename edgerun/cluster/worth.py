"""Who shall take part in computing a model: the planner's choice among the devices that are there, by what they say of
themselves and what was measured of their links. Asked before anybody is given a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgerun.cluster.control import Device
from edgerun.cluster.links import Links
from edgerun.cluster.plan import Model, choices_of_head, chosen
from edgerun.cluster.profiles import PlannedDevice, Profiles
from edgerun.cluster.shares import UNMEASURED_CORE, UNMEASURED_DISK
from edgerun.cluster.ways import FOLDING, WayName
from edgerun.cluster.wire_format import EXACT, WireFormat

_UNMEASURED_OPS = 20.0  # of a prompt, for each byte of weights; no choice depends on it


@dataclass(frozen=True)
class Verdict:
    """places: those of the other devices that shall take part. Seconds that a token should take: token_s: with them;
    alone_s: without any, all_s: with all; None where the model does not fit so."""

    places: tuple[int, ...]
    token_s: float
    alone_s: float | None
    all_s: float | None


@dataclass(frozen=True)
class Worth:
    """Of a model whose head is this device. ways, wire: as of `plan.choices_of_head`."""

    model: Model
    head: PlannedDevice
    ways: Sequence[WayName] = FOLDING
    wire: WireFormat = EXACT

    def __call__(self, others: Sequence[Device], links: Links) -> Verdict | None:
        """None where the model fits neither the head nor any group: then loading it says why."""
        named = [replace(planned_device(each), name=str(place)) for place, each in enumerate(others)]
        head = replace(self.head, name="")
        found = choices_of_head(self.model, Profiles((head, *named), links), self.ways, self.wire)
        if not found:
            return None
        best, took_s = chosen(found), dict[int, float]()  # the second: by how many take part
        for each in found:
            took_s[len(each.devices)] = min(each.token_s, took_s.get(len(each.devices), each.token_s))
        places = sorted(map(int, best.devices[1:]))
        return Verdict(tuple(places), best.token_s, took_s.get(1), took_s.get(1 + len(others)))


def planned_device(device: Device) -> PlannedDevice:
    """By what a device says of itself; of an older one, that did not measure, a guess."""
    rate = device.weights_bytes_per_s or UNMEASURED_CORE * device.cores
    return PlannedDevice(
        device.name,
        device.memory_bytes,
        rate,
        device.prompt_ops_per_s or _UNMEASURED_OPS * rate,
        device.disk_bytes_per_s or UNMEASURED_DISK,
    )
