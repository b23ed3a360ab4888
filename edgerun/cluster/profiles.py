"""What is known of devices and their links before there is a group: a file that a person writes.

    head: laptop                     # who has the model and the text; default: the first
    link: {latency_ms: 0.3, mbit_s: 1000, duplex: true, message_ms: 0.02}
    devices:
      - {name: laptop, memory: 8G, weights_gb_s: 20, prompt_gop_s: 300, disk_gb_s: 2}
      - {name: phone, memory: 3G, weights_gb_s: 10, prompt_gop_s: 80, sum_ms: 0.8}

`weights_gb_s`: bytes of weights that decoding passes in a second; `prompt_gop_s`: multiplications and additions of a
prompt's products (`edgerun plan MODEL --json` says both of this machine, in its rates). `sum_ms`: what a sum costs the
device besides the wire (default: what a core of an Emerald Rapids needs). `quota`: the part of its processor that a
limit, as of a container, leaves it (default 1: all). Such a device computes at full speed and must pause then, so that
links' time passes within its pauses; its rates are what it does with the pauses. `latency_ms`: from sending a small
message to its arrival, one way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.cluster.links import Links
from edgerun.cluster.shares import MOST_RANKS
from edgerun.errors import FormatError, UsageError
from edgerun.units import parse_size_bytes

_MOST_FILE_BYTES = 1 << 20
SUM_S = 0.2e-3  # of an Emerald Rapids' core, between products, where code and buffers are in no cache any more

_DEVICE = {"name", "memory", "weights_gb_s", "prompt_gop_s", "disk_gb_s", "sum_ms", "quota"}


@dataclass(frozen=True)
class PlannedDevice:
    """A device. memory_bytes: what edgerun may take there; sum_s: what software needs for a sum there, beside sending
    it, between products; quota: the part of its processor that it may use."""

    name: str
    memory_bytes: int
    weights_bytes_per_s: float
    prompt_ops_per_s: float
    disk_bytes_per_s: float
    sum_s: float = SUM_S
    quota: float = 1.0


@dataclass(frozen=True)
class Profiles:
    """Devices, the head first, and what their links are like."""

    devices: tuple[PlannedDevice, ...]
    links: Links


def read_profiles(path: Path) -> Profiles:
    """UsageError for a file that cannot be read, FormatError for one that says something else."""
    import yaml

    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise FormatError(f"{path}: longer than any list of devices")
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: not YAML: {error}") from None
    if not isinstance(said, dict):
        raise FormatError(f"{path}: not a list of devices")
    listed = said.get("devices")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_RANKS:
        raise FormatError(f"{path}: `devices` is not a list of 1 to {MOST_RANKS}")
    devices = [_device(path, each) for each in listed]
    names = [device.name for device in devices]
    if len(set(names)) != len(names):
        raise FormatError(f"{path}: two devices have one name")
    head = said.get("head", names[0])
    if head not in names:
        raise FormatError(f"{path}: the head {head!r} is none of the devices")
    unknown = set(said) - {"head", "link", "devices"}
    if unknown:
        raise FormatError(f"{path}: {sorted(map(str, unknown))[0]!r} is not known here")
    devices.sort(key=lambda device: device.name != head)
    return Profiles(tuple(devices), _links(path, said.get("link", {})))


def _device(path: Path, said: Any) -> PlannedDevice:
    fields = _fields(path, said, _DEVICE, "a device")
    name = fields.get("name")
    if not isinstance(name, str) or not name:
        raise FormatError(f"{path}: a device has no name")
    memory = fields.get("memory")
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise FormatError(f"{path}: {name}: memory is {memory!r}, not a size as 8G")
    try:
        memory_bytes = parse_size_bytes(str(memory))
    except UsageError as error:
        raise FormatError(f"{path}: {name}: {error}") from None
    quota = _number(path, fields, "quota", name, 1.0)
    if quota > 1:
        raise FormatError(f"{path}: {name}: quota is {quota}, more than its whole processor")
    return PlannedDevice(
        name,
        memory_bytes,
        1e9 * _number(path, fields, "weights_gb_s", name),
        1e9 * _number(path, fields, "prompt_gop_s", name),
        1e9 * _number(path, fields, "disk_gb_s", name, 0.5),
        1e-3 * _number(path, fields, "sum_ms", name, 1e3 * SUM_S),
        quota,
    )


def _links(path: Path, said: Any) -> Links:
    fields = _fields(path, said, {"latency_ms", "mbit_s", "duplex", "message_ms"}, "the link")
    duplex = fields.get("duplex", True)
    if not isinstance(duplex, bool):
        raise FormatError(f"{path}: duplex is {duplex!r}, not true or false")
    return Links(
        _number(path, fields, "latency_ms", "the link", 0.3) / 1e3,
        8e-6 / _number(path, fields, "mbit_s", "the link", 1000.0),
        _number(path, fields, "message_ms", "the link", 0.02) / 1e3,
        duplex,
    )


def _fields(path: Path, said: Any, known: set[str], what: str) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise FormatError(f"{path}: {what} is {said!r}")
    unknown = sorted(str(each) for each in said if each not in known)
    if unknown:
        raise FormatError(f"{path}: {what} has {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return said


def _number(path: Path, fields: dict[str, Any], key: str, what: str, default: float | None = None) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9 or math.isnan(value):
        raise FormatError(f"{path}: {what}: {key} is {value!r}, not a number above 0")
    return float(value)
