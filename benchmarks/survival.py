"""How long an answer pauses when a device is lost in the middle of it, and whether it stays the same.

    python -m benchmarks.survival MODEL [--devices 4] [--events 20] [--tokens 120] [--prompt 0] [--seed 1]
        [--wire f32] [--unprepared] [--overlap]

Devices are processes in network namespaces (needs root), with TLS, pairing, shards and all. Each event is a `kill -9`
of a worker, or its cable pulled, at a random moment of a greedy answer; then the worker comes back for the next one.
Before each answer it is waited until shards for a loss lie where they may be needed; with `--unprepared` none are.
With `--overlap` a second worker is lost in each event, at a random moment of the first second after the first was:
while nobody has noticed that, while the group is made anew, or while keys and values are computed again.

After each answer those who are left compute it again from the text as it was at the loss, keys and values and all, in a
group made anew: the benchmark stops at the first token that differs. Whether the whole answer is that of one device
alone is said, too: more devices round sums elsewhere, which can tip a choice between tokens that are nearly as likely.
Prints the longest pause of each answer, and at last their quantiles.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared_kernels import share_kernels
from edgerun.api.cluster import share_worker
from edgerun.api.household import load_in_household
from edgerun.api.llm import LLM
from edgerun.cluster.control import Device as Offered
from edgerun.cluster.group import GroupDecoder
from edgerun.cluster.home import Home
from edgerun.cluster.household import Household
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.events import Event, Notice
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
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=0, help="tokens before the answer, about; 0: a short sentence")
    parser.add_argument("--wire", default="f32")
    parser.add_argument("--unprepared", action="store_true")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "NAME", "HOST"))
    given = parser.parse_args()
    if given.serve:
        _serve(*given.serve)
    if not can_emulate():
        raise SystemExit("this needs root, `ip` and /dev/net/tun")
    rng = random.Random(given.seed)
    asked = {"max_tokens": given.tokens, "temperature": 0.0, "ignore_eos": True}
    context = 512 + given.prompt
    with LLM(given.model, context=context) as llm:
        many = -(-given.prompt // len(llm.engine.encode(f" {PROMPT}")))
        prompts = [f"{number}. {PROMPT}" + f" {PROMPT}" * many for number in range(given.events)]
        alone = [list(llm.complete(prompt, **asked).token_ids) for prompt in prompts]
    losses = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(folder, given.devices))
        workers = _Workers(here, folder, given.model)
        stack.callback(workers.kill_all)
        stack.enter_context(here.inside(here.devices[0]))
        if given.unprepared:
            Household.prepare = lambda *_: None  # type: ignore[method-assign]
        answers = _Answers()
        llm = stack.enter_context(
            load_in_household(
                given.model, workers.desk, context=context, wire=given.wire, all_devices=True, events=answers
            )
        )
        for number, prompt in enumerate(prompts):
            _rest()
            victims = rng.sample(range(1, given.devices), 2 if given.overlap else 1)
            lost = [(rng.choice(["kill", "down"]), victim) for victim in victims]
            moment, later_s = rng.randrange(given.tokens // 4, given.tokens * 3 // 4), rng.uniform(0, 1.0)
            second: threading.Timer | None = None
            answers.begin()
            for chunk in llm.stream(prompt, **asked):
                answers.take(chunk.token_ids)
                if answers.n_chunks == moment:
                    workers.lose(*lost[0])
                    answers.expect_loss()
                    if given.overlap:
                        second = threading.Timer(later_s, workers.lose, lost[1])
                        second.start()
            if second is not None:
                second.join()
            if answers.known_at is None:
                raise SystemExit(f"nobody noticed {lost}")
            same = answers.got == alone[number]
            loss = Loss(tuple(lost), moment, later_s, answers.pause_s, answers.noticed_s, same)
            print(f"{number}: {loss}", flush=True)
            losses.append(loss)
            _check(llm, llm.engine.encode(prompt), answers.got, answers.known_at)
            for kind, victim in lost:
                workers.bring_back(victim, kind)
            time.sleep(6)  # the head looks for them every two seconds, and a cable's old connections end after three
    pauses = sorted(loss.pause_s for loss in losses)
    p95 = pauses[min(len(pauses) - 1, int(0.95 * len(pauses)))]
    print(
        f"{len(losses)} losses, no token lost or changed; noticed after {max(loss.noticed_s for loss in losses):.2f} s "
        f"at most; pause median {statistics.median(pauses):.2f} s, p95 {p95:.2f} s, longest {pauses[-1]:.2f} s; "
        f"{sum(loss.same_as_alone for loss in losses)} answers are those of one device alone"
    )


@dataclass(frozen=True)
class Loss:
    """What an event did. lost: how, and who; later_s: of the second, where there were two."""

    lost: tuple[tuple[str, int], ...]
    token: int
    later_s: float
    pause_s: float
    noticed_s: float
    same_as_alone: bool


class _Answers:
    """What comes of an answer, and when. A sink of events, which tells of losses."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.got: list[int] = []
        self.known_at: int | None = None  # tokens that were there when the loss was noticed
        self.n_chunks = 0
        self.pause_s = self.noticed_s = 0.0
        self._last = self._lost = 0.0

    def take(self, ids: Sequence[int]) -> None:
        now = time.monotonic()
        if self.n_chunks:
            self.pause_s = max(self.pause_s, now - self._last)
        self._last = now
        self.got += ids
        self.n_chunks += 1

    def expect_loss(self) -> None:
        self._lost = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice) and "were kept" in event.text:
            print(f"   {event.text}", flush=True)
        if isinstance(event, Notice) and "divided anew" in event.text and self._lost and self.known_at is None:
            self.known_at = len(self.got)
            self.noticed_s = time.monotonic() - self._lost


def _check(llm: LLM, prompt: list[int], got: list[int], known_at: int) -> None:
    """Whether those who are left say the same, asked with the text as it was when they lost one."""
    decoder = llm.engine.decoder
    assert isinstance(decoder, GroupDecoder)
    decoder.divide_anew("to compare")
    left = len(got) - known_at
    again = llm.complete([*prompt, *got[:known_at]], max_tokens=left, temperature=0.0, ignore_eos=True)
    if list(again.token_ids) != got[known_at:]:
        raise SystemExit(f"after token {known_at} came {got[known_at:]}, and now {list(again.token_ids)}")


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
            share_kernels(here.devices[number].home)
            self._start(number)

    def _start(self, number: int) -> None:
        device, name = self._here.devices[number], self._names[number]
        serve = ("--serve", str(self._folder / name), name, device.address)
        process = device.start("-m", "benchmarks.survival", str(self._model), *serve)
        line_with(process, "listening")
        self._processes[number] = process

    def lose(self, kind: str, number: int) -> None:
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

    def kill_all(self) -> None:
        for process in self._processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _rest() -> None:
    """Until shards for the next loss are where they may be needed: while nobody asks for anything, that is soon."""
    end = time.monotonic() + 300
    while any(thread.name == "spare shards" for thread in threading.enumerate()):
        if time.monotonic() > end:
            raise SystemExit("spare shards take more than five minutes")
        time.sleep(0.1)


def _serve(folder: str, name: str, host: str) -> None:
    home = Home(Path(folder), Path(folder), name)
    server = Server(home, (host, _PORT), share_worker(), lambda job: Offered(name, 1, 1 << 30, "auto", job), print)
    print(f"listening {server.address}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
