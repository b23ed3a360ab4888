"""What guessing brings: tokens a second with and without, for a text that is repeated and for one that is not.

    python benchmarks/drafts.py MODEL.gguf [--draft lookup|MODEL] [--tokens 150] [--rounds 3]

The two take turns, so that what else the machine does hits both alike. The answers must be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from edgerun import LLM
from edgerun.engine import Completion

_TEXT = Path(__file__).parents[1] / "docs" / "streaming.md"
_BEGUN = 200  # characters of its second copy
_NEW = "Once upon a time a lighthouse keeper and his dog"


def answer(llm: LLM, prompt: str, tokens: int, **options: Any) -> Completion:
    """Of a session of its own: nothing of the prompt is there already."""
    with llm.session() as session:
        return session.complete(prompt, max_tokens=tokens, ignore_eos=True, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft", default="lookup")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="auto")
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--characters", type=int, default=3000, help="of the text to be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    text = _TEXT.read_text("utf-8")[: given.characters]
    tasks = {
        "repeated": (f"{text}\n\n{text[:_BEGUN]}", 0.0),
        "new": (_NEW, 1.0),
    }  # greedy, a small model repeats itself
    rates: dict[tuple[str, bool], list[float]] = {}
    guessed: dict[str, tuple[int, int]] = {}
    with LLM(given.model, threads=given.threads, memory=given.memory, draft=given.draft) as llm:
        draft = llm.engine.draft
        for number in range(given.rounds):
            for name, (prompt, temperature) in tasks.items():
                said = []
                for is_drafted in (False, True) if number % 2 else (True, False):
                    llm.engine.draft = draft if is_drafted else None
                    done = answer(llm, prompt, given.tokens, seed=number, temperature=temperature)
                    said.append(done.token_ids)
                    rates.setdefault((name, is_drafted), []).append(done.timings.decode_tokens_per_s)
                    if is_drafted:
                        guessed[name] = (done.timings.drafted_tokens, done.timings.accepted_tokens)
                assert said[0] == said[1], "guesses changed an answer"
    print(f"{'text':10} {'plain':>9} {'drafted':>9} {'ratio':>6}  guessed, right (last round)")
    for name in tasks:
        plain, drafted = rates[name, False], rates[name, True]
        ratio = median(one / other for one, other in zip(drafted, plain, strict=True))
        drafted_n, right_n = guessed[name]
        print(f"{name:10} {median(plain):7.1f}/s {median(drafted):7.1f}/s {ratio:6.2f}  {drafted_n}, {right_n}")


if __name__ == "__main__":
    main()
