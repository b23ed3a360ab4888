"""Faults over the public library: inject one, ask again, compare with a model to which nothing ever happened.

`python -m tests.faults.harness --rounds 500 --seed 1` prints how many faults were injected at each seam, and what
went wrong after them. A case is a fresh model (or one that has answered before), one fault or two in a row at chosen
passings of a seam, then every question again, in this thread and in another.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, field
from pathlib import Path

from edgerun import LLM
from tests.faults.questions import QUESTIONS, Answer, Given
from tests.faults.seams import SEAMS, Listener, Seam, Shot
from tests.faults.subjects import SUBJECTS, Models, Subject

HANG_S = 30.0  # an answer takes milliseconds


@dataclass(frozen=True)
class Case:
    """One experiment. `shots`: (seam, question, passing) in order. `warm`: the model has answered all before.
    `loading`: the first shot is fired while the model is loaded."""

    subject: Subject
    shots: tuple[tuple[str, str, int], ...]
    warm: bool
    loading: bool = False

    def __str__(self) -> str:
        shots = ", then ".join(
            f"{seam} at {at} of {'loading' if self.loading else asked}" for seam, asked, at in self.shots
        )
        return f"{self.subject}{', warm' if self.warm else ''}: {shots}"


@dataclass
class Outcome:
    """What was counted."""

    fired: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    passed: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # of a seam, at most in one question

    def add(self, other: Outcome) -> None:
        self.fired += other.fired
        self.faults += other.faults
        for key, n in other.passed.items():
            self.passed[key] = max(self.passed[key], n)


class Harness:
    """Subjects with the answers that a model gives to which nothing happened."""

    def __init__(self, folder: Path) -> None:
        self.models = Models(folder)
        self._right: dict[str, dict[str, Answer]] = {}

    def right(self, name: str) -> dict[str, Answer]:
        """Every question answered by a resident model of its own."""
        if name not in self._right:
            answers = {}
            for question, ask in QUESTIONS.items():
                with self.models.load(Subject(name)) as llm:
                    answers[question] = ask(llm, Given())
            self._right[name] = answers
        return self._right[name]

    def run(self, case: Case) -> Outcome:
        """Inject, ask again, count."""
        outcome = Outcome()
        right = self.right(case.subject.name)
        before = _things()
        listener = Listener()
        llm: LLM | None = None
        shots = list(case.shots)
        try:
            if case.loading:
                seam, _, at = shots.pop(0)
                llm = self._load_with(SEAMS[seam], at, case, listener, outcome)
            llm = llm or self.models.load(case.subject, listener)
            if case.warm:
                _ask_all(llm, right, "warm", outcome)
            for seam, question, at in shots:
                self._ask_with(SEAMS[seam], question, at, llm, case, listener, right, outcome)
            with ThreadPoolExecutor(1) as pool:  # whatever the fault left held is held by this thread, not by that one
                try:
                    pool.submit(_ask_all, llm, right, "in another thread", outcome).result(HANG_S)
                except TooLong:
                    outcome.faults.append("hang in another thread")
                    faulthandler.dump_traceback(file=sys.stderr)
                    os._exit(3)
            _ask_all(llm, right, "after", outcome)
        finally:
            if llm is not None:
                llm.close()
        del llm
        gc.collect()
        _leaks(before, outcome)
        outcome.faults = [f"{case}: {fault}" for fault in outcome.faults]
        return outcome

    def _load_with(self, seam: Seam, at: int, case: Case, listener: Listener, outcome: Outcome) -> LLM | None:
        """Load under fire; None where that failed as it should."""
        shot, llm = Shot(at), None
        try:
            with seam.arm(shot, listener):
                llm = self.models.load(case.subject, listener)
        except seam.allowed as error:
            _check_message(error, outcome)
            llm = None
        except BaseException as error:  # noqa: BLE001 - every other kind is what is looked for
            outcome.faults.append(f"loading raised {_brief(error)}")
        outcome.fired[seam.name] += shot.fired
        outcome.passed[(seam.name, str(case.subject), "loading")] = shot.passed
        return llm

    def _ask_with(
        self,
        seam: Seam,
        question: str,
        at: int,
        llm: LLM,
        case: Case,
        listener: Listener,
        right: dict[str, Answer],
        outcome: Outcome,
    ) -> None:
        shot = Shot(at)
        try:
            with seam.arm(shot, listener):
                answer = QUESTIONS[question](llm, shot.given)
        except seam.allowed as error:
            _check_message(error, outcome)
        except BaseException as error:  # noqa: BLE001 - every other kind is what is looked for
            outcome.faults.append(f"{question} raised {_brief(error)}")
        else:
            if answer != right[question] and not (seam.ends_early and shot.fired):
                outcome.faults.append(f"{question} was answered wrongly under fire")
        outcome.fired[seam.name] += shot.fired
        outcome.passed[(seam.name, str(case.subject), question)] = shot.passed


def _ask_all(llm: LLM, right: dict[str, Answer], when: str, outcome: Outcome) -> None:
    for question, ask in QUESTIONS.items():
        try:
            answer = ask(llm, Given())
        except Exception as error:  # noqa: BLE001 - nothing may fail now
            outcome.faults.append(f"{when}, {question} raised {_brief(error)}")
            continue
        if answer != right[question]:
            outcome.faults.append(f"{when}, {question} was answered wrongly")


def _check_message(error: BaseException, outcome: Outcome) -> None:
    if not isinstance(error, KeyboardInterrupt) and not str(error):
        outcome.faults.append(f"{type(error).__name__} without a message")


def _brief(error: BaseException) -> str:
    """Kind, message, and the last place of edgerun that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/edgerun/" in frame.filename]
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _things() -> dict[str, list[str]]:
    """What may not become more: threads and open files, by what they are."""
    folder, descriptors = Path("/proc/self/fd"), []
    for each in folder.iterdir() if folder.is_dir() else ():
        try:
            descriptors.append(str(each.readlink()).split(":")[0])
        except OSError:  # that of the listing itself
            continue
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("edgerun")]
    return {"threads": threads, "descriptors": descriptors}


def _leaks(before: dict[str, list[str]], outcome: Outcome) -> None:
    for kind, now in _things().items():
        more = Counter(now) - Counter(before[kind])
        if len(now) > len(before[kind]):
            outcome.faults.append(f"{len(now) - len(before[kind])} {kind} leaked: {', '.join(more)}")


def random_case(rng: random.Random, seen: Counter[tuple[str, str, str]]) -> Case:
    """A case. `seen`: how often each seam was passed so far, so that passings are drawn from those that there are."""
    subject = rng.choice(SUBJECTS)
    loading = rng.random() < 0.25
    seams = [seam for seam in SEAMS.values() if seam.while_loading or not loading]
    shots: list[tuple[str, str, int]] = []
    for turn in range(1 if rng.random() < 0.6 else 2):
        seam = rng.choice(seams if turn == 0 else list(SEAMS.values()))
        question = rng.choice(list(QUESTIONS))
        place = "loading" if loading and turn == 0 else question
        most = seen[(seam.name, str(subject), place)]
        at = rng.randint(1, most) if most else rng.choice((1, 2, 3))
        shots.append((seam.name, question, at))
    return Case(subject, tuple(shots), warm=rng.random() < 0.3, loading=loading)


def run_random(
    harness: Harness, rounds: int, seed: int, *, report: Callable[[int, Case, Outcome], None] | None = None
) -> Outcome:
    """`rounds` cases from a seed."""
    rng, total = random.Random(seed), Outcome()
    for turn in range(rounds):
        case = random_case(rng, total.passed)
        faulthandler.dump_traceback_later(4 * HANG_S, exit=True)
        outcome = harness.run(case)
        faulthandler.cancel_dump_traceback_later()
        total.add(outcome)
        if report is not None:
            report(turn + 1, case, outcome)
    return total


def main() -> None:
    """Print counts by seam; exit 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()

    def report(turn: int, case: Case, outcome: Outcome) -> None:
        for fault in outcome.faults:
            print(f"{turn}: {fault}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        total = run_random(Harness(Path(folder)), asked.rounds, asked.seed, report=report)
    print(f"seed {asked.seed}, {asked.rounds} cases; faults injected:")
    for name in SEAMS:
        print(f"  {name:24} {total.fired[name]}")
    print(f"  {'all':24} {sum(total.fired.values())}")
    print(f"wrong: {len(total.faults)}")
    sys.exit(1 if total.faults else 0)


if __name__ == "__main__":
    main()
