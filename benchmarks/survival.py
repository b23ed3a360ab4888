"""How long an answer pauses when a device is lost in the middle of it, and whether it stays the same.

    python -m benchmarks.survival MODEL [--devices 4] [--events 20] [--tokens 120]

Devices are processes in network namespaces (needs root), with TLS, pairing, shards and all. Each event is a `kill -9`
of a worker, or its cable pulled, at a random moment of a greedy answer; then the worker comes back for the next one.
Prints the longest pause of each answer, and at last their quantiles; stops at the first answer that is not the one of
a device alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from edgerun.api.cluster import share_worker
from edgerun.api.household import load_in_household
from edgerun.api.llm import LLM
from edgerun.cluster.control import Device as Offered
from edgerun.cluster.home import Home
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.events import Event, Notice
from edgerun.kernels.choice import choose
from edgerun.kernels.compile import file_name
from edgerun.kernels.kernel_code import SOURCES
from edgerun.paths import cache_dir
from tests.cluster.homes import acquainted
from tests.cluster.lab import Lab, can_emulate, lab, line_with

PROMPT = "Once upon a time there was a little fox who"
_PORT = 8640


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "NAME", "HOST"))
    given = parser.parse_args()
    if given.serve:
        _serve(*given.serve)
    if not can_emulate():
        raise SystemExit("this needs root, `ip` and /dev/net/tun")
    rng = random.Random(1)
    asked = {"max_tokens": given.tokens, "temperature": 0.0}
    prompts = [f"{number}. {PROMPT}" for number in range(given.events)]  # a device that came takes part in a new one
    with LLM(given.model, context=512) as llm:
        ids = [llm.complete(prompt, **asked).token_ids for prompt in prompts]
    pauses: dict[str, list[float]] = {"kill": [], "down": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(folder, given.devices))
        workers = _Workers(here, folder, given.model)
        stack.callback(workers.kill_all)
        stack.enter_context(here.inside(here.devices[0]))
        said: list[str] = []
        llm = stack.enter_context(
            load_in_household(given.model, workers.desk, context=512, events=lambda event: _note(said, event))
        )
        for number in range(given.events):
            kind, victim = rng.choice(["kill", "down"]), rng.randrange(1, given.devices)
            moment = rng.randrange(given.tokens // 4, given.tokens * 3 // 4)
            said.clear()
            times, got = [time.monotonic()], []
            for chunk in llm.stream(prompts[number], **asked):
                got += chunk.token_ids
                times.append(time.monotonic())
                if len(times) == moment:
                    workers.lose(victim, kind)
            gaps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
            same = got == list(ids[number])
            print(
                f"{number}: {kind} of device {victim} at token {moment}: pause {max(gaps):.2f} s, same {same}, {said}",
                flush=True,
            )
            if not same or not any("anew" in text for text in said):
                raise SystemExit("the answer changed, or nobody noticed")
            pauses[kind].append(max(gaps))
            workers.bring_back(victim, kind)
    everything = sorted(pauses["kill"] + pauses["down"])
    p95 = everything[min(len(everything) - 1, int(0.95 * len(everything)))]
    kinds = ", ".join(f"{kind} median {statistics.median(each):.2f} s" for kind, each in pauses.items() if each)
    print(f"{len(everything)} events: pause median {statistics.median(everything):.2f} s, p95 {p95:.2f} s; {kinds}")


class _Workers:
    def __init__(self, here: Lab, folder: Path, model: Path) -> None:
        self._here = here
        self._folder = folder
        self._model = model
        names = ["desk", *(f"worker{i}" for i in range(1, len(here.devices)))]
        self._names = names
        homes = acquainted(folder, *names)
        self.desk: Home = homes[0]
        for number, home in enumerate(homes[1:], 1):
            place = Member(home.identity.certificate, f"{here.devices[number].address}:{_PORT}")
            self.desk.admit(place)
            for other in homes[1:]:
                other.admit(place)
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for number in range(1, len(names)):
            _share_kernels(here.devices[number].home)
            self._start(number)

    def _start(self, number: int) -> None:
        device, name = self._here.devices[number], self._names[number]
        serve = ("--serve", str(self._folder / name), name, device.address)
        process = device.start("-m", "benchmarks.survival", str(self._model), *serve)
        line_with(process, "listening")
        self._processes[number] = process

    def lose(self, number: int, kind: str) -> None:
        if kind == "kill":
            os.killpg(self._processes[number].pid, signal.SIGKILL)
        else:
            self._here.tell(f"down {number}")

    def bring_back(self, number: int, kind: str) -> None:
        if kind == "kill":
            self._processes.pop(number).wait()
            self._start(number)
        else:
            self._here.tell(f"up {number}")
        time.sleep(6)  # the head looks for it every two seconds, and a cable's old connections end after three

    def kill_all(self) -> None:
        for process in self._processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _share_kernels(home: Path) -> None:
    """Kernels that are compiled already are the device's, too."""
    there = home / "cache" / "edgerun" / "kernels"
    there.mkdir(parents=True, mode=0o700)
    for folder in (home / "cache", home / "cache" / "edgerun"):
        folder.chmod(0o700)
    for kernel in SOURCES:
        name = file_name(kernel, choose("auto"))
        if (cache_dir() / "kernels" / name).is_file():
            os.link(cache_dir() / "kernels" / name, there / name)


def _note(said: list[str], event: Event) -> None:
    if isinstance(event, Notice):
        said.append(event.text)


def _serve(folder: str, name: str, host: str) -> None:
    home = Home(Path(folder), Path(folder), name)
    server = Server(home, (host, _PORT), share_worker(), lambda job: Offered(name, 1, 1 << 30, "auto", job), print)
    print(f"listening {server.address}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
