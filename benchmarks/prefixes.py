"""What was computed before is not computed again: prefixes that many share, and sessions that come back from files.

    python benchmarks/prefixes.py MODEL.gguf [--prefix 1500] [--sessions 10] [--saved 2000]

Sessions with the same prefix and own questions: seconds to the first token of the first and of those after it, and what
all hold together. Then a session is saved, another process loads model and session: seconds to its next token, and
whether it has the probabilities, to the last bit, that the session would have had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from edgerun import LLM
from edgerun.engine import Session

OWN = 16  # tokens of each session's question
MIB = 1 << 20


def next_token(session: Session, ids: list[int]) -> tuple[float, list[Any]]:
    """Seconds until the token after the session's and these, and its probability beside the likeliest."""
    begun = perf_counter()
    done = session.complete(ids, max_tokens=1, ignore_eos=True, temperature=0, logprobs=5)
    seconds = perf_counter() - begun
    assert done.logprobs is not None
    return seconds, [(each.token_id, each.logprob.hex()) for each in (done.logprobs[0], *done.logprobs[0].top)]


def shared(llm: LLM, prefix: int, count: int, random: np.random.Generator) -> None:
    """Measure and print what a prefix costs those who share it."""

    def some(n: int) -> list[int]:
        return [int(each) for each in random.integers(10, llm.vocab_size - 10, n)]

    with llm.session() as session:
        next_token(session, some(300))  # launches are recorded
    begins_so, ledger = some(prefix), llm.engine.decoder.pages.ledger
    before = ledger.held_bytes
    sessions = [llm.session() for _ in range(count)]
    seconds, held = [], []
    for session in sessions:
        seconds.append(next_token(session, [*begins_so, *some(OWN)])[0])
        held.append(ledger.held_bytes - before)
    print(
        f"prefix of {prefix}: first token of the first after {seconds[0]:.3f} s, of the second {seconds[1]:.4f} s ",
        end="",
    )
    print(f"({seconds[1] / seconds[0]:.3f}), median of the others {median(seconds[1:]):.4f} s")
    holders = Counter(page for each in sessions for page in each._context.sequence.held_pages())
    tails = sum(page.n_bytes for page, n in holders.items() if n == 1)
    line = f"held by one {held[0] / MIB:.1f} MiB, by {count} {held[-1] / MIB:.1f} MiB, of which only one session's "
    print(f"{line}{tails / MIB:.1f} MiB: without these {(held[-1] - tails) / held[0]:.2f} of one")
    for session in sessions:
        session.close()


def again(model: str, threads: int, path: str) -> None:
    """In another process: load, say the next token."""
    with LLM(model, threads=threads) as llm:
        begun = perf_counter()
        with llm.load_session(path) as session:
            _, found = next_token(session, [])
            print(json.dumps({"seconds": perf_counter() - begun, "found": found}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prefix", type=int, default=1500)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--saved", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", help="a saved session (for this script itself)")
    a = parser.parse_args()
    if a.again:
        again(a.model, a.threads, a.again)
        return
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder, LLM(a.model, threads=a.threads) as llm:
        shared(llm, a.prefix, a.sessions, random)
        path = Path(folder) / "session"
        with llm.session() as session:
            next_token(session, random.integers(10, llm.vocab_size - 10, a.saved - 1).tolist())
            session.save(path)
            size, n = path.stat().st_size, len(session.ids)
            _, expected = next_token(session, [])
        command = [sys.executable, __file__, a.model, "--again", str(path), "--threads", str(a.threads)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    same = "the same bits" if told["found"] == [list(each) for each in expected] else "OTHER BITS"
    print(f"session of {n} tokens, {size / MIB:.1f} MiB on disk: next token of another process after ", end="")
    print(f"{told['seconds']:.3f} s, {same}")


if __name__ == "__main__":
    main()
