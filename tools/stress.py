"""Many threads share one model and do everything that a library lets them: every answer must be that of one alone.

    python -m tools.stress MODEL --threads 16 --minutes 5 [--memory 1G] [--kv q8_0] [--seed 1]
        [--draft lookup] [--window 256 --sinks 4]

MODEL is a file, a name that `edgerun list` has (`default`), or `smollm2` or `gemma3`, which `tools.fetch_real` fetches.
What is asked has been answered before, by the same model, one thing at a time. Then threads choose at random: complete,
chat, talk in a session, fork it, save it, embed, score, walk away from a stream, cancel, fail in
a caller's own function. At the end no page may be held but by the cache of the last call and for those who begin alike,
and the model is closed while all are busy.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerun import LLM
from edgerun.engine import CancelToken, Completion
from edgerun.errors import BusyError, Cancelled, DoesNotFitError, EdgerunError, NotFoundError, UsageError
from edgerun.hub import resolve
from tests.real.models import GEMMA, SMOLLM2

PROMPTS = (
    "Once upon a time",
    "Once upon a time there was a house",
    "The weather on the hill was",
    "hello " * 40,
    "A long story about the sea. " * 12,
    "In the beginning",
    "The sea was calm that day. " * 40,  # it stops between layers for others' tokens
)
TURNS = ("Hello there", "And then?", "Tell me more of the house")
REAL = {"smollm2": SMOLLM2, "gemma3": GEMMA}
LONGEST = 48  # tokens of an answer
HANG_S = 120.0


class Planted(Exception):
    """What a caller's own function raises."""


@dataclass
class Outcome:
    """asked: of each kind, how often. refused: for want of memory, where sessions hold it all."""

    asked: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True)
class Right:
    """What the model answers when it is asked one thing at a time."""

    completions: tuple[Completion, ...]
    chats: tuple[Completion, ...]
    talk: tuple[str, ...]  # a session's turns, the last one in a copy
    embeddings: tuple[bytes, ...]
    scores: tuple[tuple[float, ...], ...]


def ask_alone(llm: LLM) -> Right:
    """The references."""
    with llm.session() as session:
        talk = [session.chat(turn, **greedy(12)).text for turn in TURNS[:2]]
        with session.fork() as twin:
            talk.append(twin.chat(TURNS[2], **greedy(12)).text)
    return Right(
        tuple(llm.complete(prompt, **greedy(LONGEST)) for prompt in PROMPTS),
        tuple(llm.chat(turn, **greedy(LONGEST)) for turn in TURNS),
        tuple(talk),
        tuple(llm.embed(prompt).tobytes() for prompt in PROMPTS),
        tuple(llm.score(prompt).logprobs for prompt in PROMPTS),
    )


def greedy(most: int) -> dict[str, Any]:
    """Options of an answer that is always the same."""
    return {"temperature": 0.0, "max_tokens": most, "ignore_eos": True}


class Stress:
    """Threads over one model."""

    def __init__(self, llm: LLM, right: Right, *, sessions: bool = True) -> None:
        self.llm, self.right = llm, right
        self.outcome = Outcome()
        self._lock = threading.Lock()
        self._closing = False
        self._acts: list[Callable[[random.Random], None]] = [
            self._complete,
            self._complete,
            self._chat,
            self._embed,
            self._score,
            self._walk_away,
            self._cancel,
            self._fail,
            *([self._talk, self._save] if sessions else []),
        ]

    def run(self, threads: int, seconds: float, seed: int, *, close: bool = True) -> Outcome:
        """Ask for so long; then look for pages that leaked, and close the model while threads are busy again."""
        faulthandler.dump_traceback_later(seconds + HANG_S, exit=True)
        try:
            self._together(threads, seed, lambda: time.sleep(seconds))
            self._find_leaks()
            if close:
                self._together(threads, seed + 1, self._close)
        finally:
            faulthandler.cancel_dump_traceback_later()
        return self.outcome

    def _together(self, threads: int, seed: int, meanwhile: Callable[[], None]) -> None:
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed} {i}"), stop)) for i in range(threads)
        ]
        for worker in workers:
            worker.start()
        meanwhile()
        stop.set()
        for worker in workers:
            worker.join()

    def _work(self, rng: random.Random, stop: threading.Event) -> None:
        while not stop.is_set():
            act = rng.choice(self._acts)
            try:
                act(rng)
            except (DoesNotFitError, BusyError):
                with self._lock:
                    self.outcome.refused += 1
            except UsageError as error:
                if not self._closing or "closed" not in str(error):
                    self._fault(f"{act.__name__}: {error!r}")
                return
            except BaseException as error:  # noqa: BLE001 - nothing else may come
                self._fault(f"{act.__name__}: {error!r}")
            with self._lock:
                self.outcome.asked[act.__name__.strip("_")] += 1

    def _close(self) -> None:
        time.sleep(0.3)
        self._closing = True
        self.llm.close()

    def _fault(self, text: str) -> None:
        with self._lock:
            self.outcome.faults.append(text)

    def _check(self, right: bool, what: str) -> None:
        if not right:
            self._fault(f"{what} was answered wrongly")

    def _find_leaks(self) -> None:
        """Only the last call's cache, and what is kept for those who begin alike, may hold pages now."""
        gc.collect()
        pool, idle = self.llm.engine.decoder.pages, self.llm._idle
        pool.check_integrity()
        kept = set(pool.prefixes.held_pages())
        if idle is not None:
            kept |= set(idle._context.sequence.held_pages())
        kept_bytes = sum(page.n_bytes for page in kept)
        if pool.n_bytes != kept_bytes:
            self._fault(f"{pool.n_bytes} bytes of pages are held, {kept_bytes} of them by whoever may")
        if self.llm.engine.scheduler._requests:
            self._fault("requests are left behind")

    # -- what threads do -----------------------------------------------------------------------------------------

    def _complete(self, rng: random.Random) -> None:
        i, most = rng.randrange(len(PROMPTS)), rng.randint(1, LONGEST)
        said = self.llm.complete(PROMPTS[i], **greedy(most))
        self._check(said.token_ids == self.right.completions[i].token_ids[:most], "a completion")

    def _chat(self, rng: random.Random) -> None:
        i = rng.randrange(len(TURNS))
        said = self.llm.chat(TURNS[i], **greedy(LONGEST))
        self._check(said.text == self.right.chats[i].text, "a chat")

    def _embed(self, rng: random.Random) -> None:
        i = rng.randrange(len(PROMPTS))
        self._check(self.llm.embed(PROMPTS[i]).tobytes() == self.right.embeddings[i], "an embedding")

    def _score(self, rng: random.Random) -> None:
        i = rng.randrange(len(PROMPTS))
        self._check(self.llm.score(PROMPTS[i]).logprobs == self.right.scores[i], "a score")

    def _talk(self, rng: random.Random) -> None:
        """Turns in a session, some taken back and asked again, the last one in a copy."""
        with self.llm.session() as session:
            said = [session.chat(TURNS[0], **greedy(12)).text]
            if rng.random() < 0.5:
                session.chat(TURNS[2], **greedy(3))
                session.undo()
            said.append(session.chat(TURNS[1], **greedy(12)).text)
            with session.fork() as twin:
                if rng.random() < 0.5:
                    session.clear()
                said.append(twin.chat(TURNS[2], **greedy(12)).text)
        self._check(tuple(said) == self.right.talk, "a session")

    def _save(self, rng: random.Random) -> None:
        """A session goes to a file after some turns, and another comes from it."""
        turns = rng.randint(1, 2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "session"
            with self.llm.session() as session:
                said = [session.chat(turn, **greedy(12)).text for turn in TURNS[:turns]]
                session.save(path)
            with self.llm.load_session(path) as session:
                said += [session.chat(turn, **greedy(12)).text for turn in TURNS[turns:]]
        self._check(tuple(said) == self.right.talk, "a session that was saved")

    def _walk_away(self, rng: random.Random) -> None:
        i, ids, left = rng.randrange(len(PROMPTS)), [], rng.randint(0, 20)
        stream = self.llm.stream(PROMPTS[i], **greedy(LONGEST))
        for chunk in stream:
            ids += chunk.token_ids
            left -= 1
            if left <= 0:
                break
            if rng.random() < 0.05:
                time.sleep(0.05)  # a reader that does not read
        stream.close()  # type: ignore[attr-defined]
        self._check(tuple(ids) == self.right.completions[i].token_ids[: len(ids)], "a stream that was left")

    def _cancel(self, rng: random.Random) -> None:
        i, cancel = rng.randrange(len(PROMPTS)), CancelToken()
        timer = threading.Timer(rng.random() * 0.3, cancel.cancel)
        timer.start()
        try:
            said = self.llm.complete(PROMPTS[i], cancel=cancel, **greedy(LONGEST)).token_ids
        except Cancelled:
            return  # the prompt was not made into tokens yet
        finally:
            timer.cancel()
        self._check(said == self.right.completions[i].token_ids[: len(said)], "a cancelled completion")

    def _fail(self, rng: random.Random) -> None:
        left = rng.randint(1, 10)

        def processor(ids: Any, logits: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Planted
            return logits

        try:
            self.llm.complete(rng.choice(PROMPTS), processors=[processor], **greedy(LONGEST))
        except Planted:
            return
        self._fault("an error of a caller's function was swallowed")


def path_of(name: str) -> Path:
    """The file that `name` means. NotFoundError, also for one that would have to be fetched first."""
    real = REAL.get(name)
    if real is None or Path(name).exists():
        return resolve(name, download=False)
    if not real.path.is_file():
        raise NotFoundError(f"{name} is not here; `python -m tools.fetch_real` fetches it")
    return real.path


def main() -> None:
    """Print what was asked; exit 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--draft", choices=["lookup"])
    parser.add_argument("--window", type=int)
    parser.add_argument("--sinks", type=int)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    given = {name: getattr(asked, name) for name in ("draft", "window", "sinks") if getattr(asked, name) is not None}
    try:
        llm = LLM(path_of(asked.model), memory=asked.memory, kv=asked.kv, context=asked.context, **given)
    except EdgerunError as error:
        parser.exit(1, f"{error}\n")
    outcome = Stress(llm, ask_alone(llm)).run(asked.threads, 60 * asked.minutes, asked.seed)
    for kind, n in sorted(outcome.asked.items()):
        print(f"{kind:12} {n}")
    print(f"{'refused':12} {outcome.refused}")
    for fault in outcome.faults[:20]:
        print(fault, file=sys.stderr)
    print(f"wrong: {len(outcome.faults)}")
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
