"""A switch in user space: frames between namespaces, each later by a delay, at a rate, and some not at all.

`python -m tests.cluster.switch NAMESPACE... --delay S --rate BITS --loss P [--python]` makes the device `tap0` in each
namespace, with the address 10.97.0.(i + 1), and carries frames between them until its standard input ends. It obeys
the lines `down I` and `up I` there (a cable is pulled and put back), `delay S`, `rate BITS`, `loss P`.

A frame waits for the sender's cable to be free, takes as long as its bytes need at the rate, then the delay, then waits
for the receiver's cable, as with two cables and a switch between that forwards whole frames at once.

Frames are carried by `switch.c`, where there is a compiler: devices of a group share their cores with it, and a cable
needs none. Its taps are as network cards are: they cut large segments up, and put them together (each packet's headers
count at the rate). Else, and with `--python`, by the class below.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEW_NET = 0x40000000
_TUN_SET = 0x400454CA
_TAP_WITHOUT_HEADER, _VIRTIO_HEADER = 0x0002 | 0x1000, 0x4000
_TUN_OFFLOADS, _SUMS_AND_SEGMENTS = 0x400454D0, 0x01 | 0x02
_MTU = 9000  # a token's sum in one frame, for which no acknowledgement is sent at once
_MOST_WAITING = 4096  # frames on one cable: a switch has no more room
_EARLY_S = 0.00006  # what is due so soon is handed over now: to sleep takes as much longer than it should


def compiled(folder: Path) -> Path | None:
    """`switch.c` as a program there; None where nothing compiles it."""
    program = folder / "switch"
    for compiler in ("cc", "gcc", "clang"):
        if shutil.which(compiler) is not None:
            command = [compiler, "-O2", "-o", str(program), str(Path(__file__).with_suffix(".c"))]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return program
    return None


def open_tap(namespace: str, number: int, *, cuts: bool) -> int:
    """The end of a new device in a namespace. cuts: segments go through it whole, with a header that says so."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, NEW_NET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        kind = _TAP_WITHOUT_HEADER | (_VIRTIO_HEADER if cuts else 0)
        fcntl.ioctl(tap, _TUN_SET, struct.pack("16sH22x", b"tap0", kind))
        if cuts:
            fcntl.ioctl(tap, _TUN_OFFLOADS, _SUMS_AND_SEGMENTS)
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        mac = f"02:00:00:00:00:{number + 1:02x}"
        for command in (
            f"link set tap0 address {mac} mtu {_MTU} txqueuelen 4096",
            f"address add 10.97.0.{number + 1}/24 brd + dev tap0",
            "link set tap0 up",
            "link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True)
    finally:
        libc.setns(here, NEW_NET)
        os.close(here)
        os.close(there)
    return tap


class Switch:
    """Ports, and the frames under way."""

    def __init__(self, taps: list[int], delay_s: float, bits_per_s: float, loss: float) -> None:
        self.taps = taps
        self.delay_s = delay_s
        self.bytes_per_s = bits_per_s / 8
        self.loss = loss
        self._down: set[int] = set()
        self._sending_until = [0.0] * len(taps)
        self._receiving_until = [0.0] * len(taps)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._random = random.Random(1)

    def obey(self, line: str) -> None:
        word, value = line.split()
        if word == "down":
            self._down.add(int(value))
        elif word == "up":
            self._down.discard(int(value))
        elif word == "delay":
            self.delay_s = float(value)
        elif word == "rate":
            self.bytes_per_s = float(value) / 8
        elif word == "loss":
            self.loss = float(value)
        else:
            raise ValueError(line)

    def take(self, port: int) -> None:
        """Frames that a namespace sends."""
        for _ in range(64):
            try:
                frame = os.read(self.taps[port], 65600)
            except BlockingIOError:
                return
            if port in self._down or self._random.random() < self.loss:
                continue
            if frame[0] & 1:  # for all
                targets = [other for other in range(len(self.taps)) if other != port]
            else:
                targets = [frame[5] - 1] if 0 < frame[5] <= len(self.taps) else []
            now = time.monotonic()
            took_s = len(frame) / self.bytes_per_s
            sent = self._sending_until[port] = max(now, self._sending_until[port]) + took_s
            for target in targets:
                if target in self._down or len(self._under_way) > _MOST_WAITING:
                    continue
                # its first byte arrives a delay after it was sent, and no earlier than the cable is free
                arrived = max(sent + self.delay_s, self._receiving_until[target] + took_s)
                self._receiving_until[target] = arrived
                self._number += 1
                heapq.heappush(self._under_way, (arrived, self._number, target, frame))

    def deliver(self) -> float:
        """Hand over what is due; how long until the next is."""
        while self._under_way:
            wait_s = self._under_way[0][0] - time.monotonic()
            if wait_s > _EARLY_S:
                return wait_s - _EARLY_S
            _, _, target, frame = heapq.heappop(self._under_way)
            try:
                os.write(self.taps[target], frame)
            except OSError:
                continue  # a full queue there: lost, as on a wire
        return 0.2

    def run(self) -> None:
        """Until standard input ends."""
        ports = {tap: port for port, tap in enumerate(self.taps)}
        watched = [*self.taps, sys.stdin.fileno()]
        while True:
            for ready in select.select(watched, [], [], self.deliver())[0]:  # epoll and poll wait whole milliseconds
                if ready in ports:
                    self.take(ports[ready])
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                self.obey(line)
                print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("namespaces", nargs="+")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=1e9)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--python", action="store_true")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(29, 1)  # timers to the nanosecond
    with contextlib.suppress(PermissionError):  # a cable does not wait for processes
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(60))
    with tempfile.TemporaryDirectory() as folder:
        program = None if given.python else compiled(Path(folder))
        cuts = program is not None
        taps = [open_tap(name, number, cuts=cuts) for number, name in enumerate(given.namespaces)]
        if program is not None:
            numbers = [str(each) for each in (given.delay, given.rate, given.loss)]
            sys.exit(subprocess.call([program, ",".join(map(str, taps)), *numbers], pass_fds=taps))
        print("ready", flush=True)
        Switch(taps, given.delay, given.rate, given.loss).run()


if __name__ == "__main__":
    main()
