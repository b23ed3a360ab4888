"""Finding devices in the house by multicast DNS: each says its fingerprint, its name and where it listens.

What is heard is only a place to try: who is there is found out by pairing or by pinned certificates.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from edgerun.cluster.dial import format_address
from edgerun.cluster.identity import checked_name
from edgerun.errors import NetworkError, UsageError

_TYPE = "_edgerun._tcp.local."
_ID = re.compile(r"[0-9a-f]{64}")
_MOST_FOUND = 256
_ASK_MS = 1000


@dataclass(frozen=True)
class Found:
    """A device that says it is there."""

    fingerprint: str
    name: str
    address: str


class Advert:
    """This device says where it is, until it is closed."""

    def __init__(self, fingerprint: str, name: str, port: int) -> None:
        try:
            self._zeroconf = Zeroconf()
            self._info = ServiceInfo(
                _TYPE,
                f"{fingerprint[:16]}.{_TYPE}",
                port=port,
                properties={"id": fingerprint, "name": name},
                server=f"edgerun-{fingerprint[:16]}.local.",
                parsed_addresses=own_addresses(),
            )
            self._zeroconf.register_service(self._info)
        except OSError as error:
            raise NetworkError(f"the network takes no multicast ({error}); give --peer on the other devices") from error

    def close(self) -> None:
        """Say that it is gone."""
        self._zeroconf.unregister_service(self._info)
        self._zeroconf.close()


def find_devices(wait_s: float, enough: Callable[[list[Found]], bool] = lambda found: False) -> list[Found]:
    """Who says it is there, by name, after `wait_s` or as soon as that is `enough`. NetworkError where there is no
    multicast."""
    try:
        zeroconf = Zeroconf()
    except OSError as error:
        raise NetworkError(f"the network takes no multicast ({error}); give --peer") from error
    listener = _Listener()
    with contextlib.closing(zeroconf):
        ServiceBrowser(zeroconf, _TYPE, listener)
        end = time.monotonic() + wait_s
        while time.monotonic() < end and not enough(list(listener.found.values())):
            time.sleep(0.05)
    return sorted(listener.found.values(), key=lambda each: (each.name, each.fingerprint))


def own_addresses() -> list[str]:
    """IPv4 addresses of this device that others may reach."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(each.address)
                if address.version == 4 and not address.is_loopback:
                    found.append(str(address))
    return found


class _Listener(ServiceListener):
    def __init__(self) -> None:
        self.found: dict[str, Found] = {}

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        info = zc.get_service_info(type_, name, timeout=_ASK_MS)
        device = None if info is None else _checked(info)
        if device is not None and len(self.found) < _MOST_FOUND:
            self.found[name] = device

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.found.pop(name, None)


def _checked(info: ServiceInfo) -> Found | None:
    """What it says, if that makes sense: anybody may say anything."""
    said = info.decoded_properties
    fingerprint, name, addresses = said.get("id"), said.get("name"), info.parsed_addresses()
    if not (fingerprint and name and addresses and info.port and _ID.fullmatch(fingerprint)):
        return None
    try:
        return Found(fingerprint, checked_name(name), format_address(addresses[0], info.port))
    except UsageError:
        return None
