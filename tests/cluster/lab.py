"""Devices of a test as real processes: in network namespaces joined by a switch where that is allowed, else on this
machine's loopback."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from tests.cluster.switch import NEW_NET

_ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


@cache
def can_emulate() -> bool:
    """Whether this user may make namespaces and devices in them."""
    if os.name != "posix" or os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        return False
    name = f"er{os.getpid()}try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    made = subprocess.run(
        ["ip", "netns", "exec", name, "ip", "tuntap", "add", "tap0", "mode", "tap"], capture_output=True, check=False
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


class Device:
    """A place where processes run: an address, and a home of its own."""

    def __init__(self, number: int, namespace: str, home: Path) -> None:
        self.number = number
        self.address = f"10.97.0.{number + 1}" if namespace else "127.0.0.1"
        self.namespace = namespace
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.environment = {
            **os.environ,
            "HOME": str(home),
            **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA", "STATE")},
        }
        self.home = home

    def start(
        self, *arguments: str, environment: Mapping[str, str] | None = None, errors_apart: bool = False
    ) -> subprocess.Popen[str]:
        """`python *arguments` there; its output together, line by line."""
        enter = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return subprocess.Popen(
            [*enter, sys.executable, *arguments],
            cwd=_ROOT,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if errors_apart else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


class Lab:
    """Devices and, where there is one, the switch."""

    def __init__(self, devices: list[Device], switch: subprocess.Popen[str] | None) -> None:
        self.devices = devices
        self.switch = switch

    @contextmanager
    def inside(self, device: Device) -> Iterator[None]:
        """This thread, and those that it starts, make their connections from that device."""
        if not device.namespace:
            yield
            return
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{device.namespace}", os.O_RDONLY)
        try:
            if libc.setns(there, NEW_NET):
                raise OSError(ctypes.get_errno(), f"cannot enter {device.namespace}")
            yield
        finally:
            libc.setns(here, NEW_NET)
            os.close(there)
            os.close(here)

    def tell(self, line: str) -> None:
        """A word for the switch (`down 1`, `up 1`, `delay 0.001`), obeyed when this returns."""
        assert self.switch is not None and self.switch.stdin is not None and self.switch.stdout is not None
        self.switch.stdin.write(line + "\n")
        self.switch.stdin.flush()
        assert self.switch.stdout.readline() == "done\n"


def remove_leftovers() -> None:
    """Namespaces of processes that were killed before they could remove them."""
    for path in Path("/run/netns").glob("er*x*x*"):
        owner = path.name[2:].split("x")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


@contextmanager
def lab(
    folder: Path, count: int, *, delay_s: float = 0.0003, bits_per_s: float = 1e9, loss: float = 0.0
) -> Iterator[Lab]:
    """`count` devices, on links of that delay (one way) and rate. On loopback where namespaces are not allowed."""
    with ExitStack() as stack:
        names = [""] * count
        switch = None
        if can_emulate():
            remove_leftovers()
            number = next(_numbers)
            names = [f"er{os.getpid()}x{number}x{i}" for i in range(count)]
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
            switch = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.switch", *names]
                + [f"--delay={delay_s}", f"--rate={bits_per_s}", f"--loss={loss}"],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_stop, switch)
            assert switch.stdout is not None and switch.stdout.readline() == "ready\n"
        yield Lab([Device(i, name, folder / f"device{i}") for i, name in enumerate(names)], switch)


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, killed at the end with what it started."""
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def line_with(process: subprocess.Popen[str], text: str, wait_s: float = 30, log: IO[str] | None = None) -> str:
    """The first line of its output that has the text. log: where all lines go until then."""
    assert process.stdout is not None
    end, seen = time.monotonic() + wait_s, []
    for line in process.stdout:
        seen.append(line)
        if log is not None:
            log.write(f"{time.monotonic() - end + wait_s:.1f} s: {line}")
            log.flush()
        if text in line:
            return line
        assert time.monotonic() < end, "".join(seen)
    raise AssertionError(f"it ended without {text!r}:\n{''.join(seen)}")


def heard_from(process: subprocess.Popen[str]) -> list[str]:
    """The list of its further lines, which grows as they come. Who says much would else wait for a reader, for good:
    a pipe holds 64 KiB."""
    lines: list[str] = []

    def hear() -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # it was closed
            lines.extend(process.stdout)

    threading.Thread(target=hear, name="hearing a device", daemon=True).start()
    return lines


def _stop(switch: subprocess.Popen[str]) -> None:
    assert switch.stdin is not None and switch.stdout is not None
    switch.stdin.close()
    try:
        switch.wait(5)
    except subprocess.TimeoutExpired:
        switch.kill()
        switch.wait()
    switch.stdout.close()
