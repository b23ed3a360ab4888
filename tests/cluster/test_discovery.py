"""Devices find each other in a network of namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerun.cluster.discovery import own_addresses
from tests.cluster.lab import can_emulate, lab, line_with, running

_SAY = """
import time
from edgerun.cluster.discovery import Advert
advert = Advert("ab" * 32, "attic", 8627)
print("said", flush=True)
time.sleep(60)
"""
_FIND = """
from edgerun.cluster.discovery import find_devices
print("found", find_devices(20, bool))
"""


def test_own_addresses_are_others_too() -> None:
    assert not [address for address in own_addresses() if address.startswith("127.")]


@pytest.mark.skipif(not can_emulate(), reason="needs network namespaces: multicast does not reach loopback")
def test_a_device_is_found_by_multicast(tmp_path: Path) -> None:
    with lab(tmp_path, 2) as here:
        saying, finding = (device.start("-c", text) for device, text in zip(here.devices, (_SAY, _FIND), strict=True))
        with running(saying), running(finding):
            line_with(saying, "said")
            found = line_with(finding, "found")
    assert f"fingerprint='{'ab' * 32}', name='attic', address='10.97.0.1:8627'" in found
