"""What is measured: cases, and lists of numbers as llama-bench takes them ("128,512", "1-4", "128-1024*2")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgerun.errors import UsageError

_MOST_NUMBERS = 256
MOST_TOKENS = 1 << 20
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})(?:([+*])(\d{1,9}))?")


@dataclass(frozen=True)
class Case:
    """A prompt of `prompt` tokens, then `decode` tokens one at a time, after `depth` tokens that are not measured.
    batch: tokens of the prompt in one call, 0: all."""

    prompt: int
    decode: int
    depth: int = 0
    batch: int = 0

    @property
    def name(self) -> str:
        """As llama-bench calls it: "pp512", "tg128", "pp512+tg128 @ d1024"."""
        parts = [f"pp{self.prompt}"] if self.prompt else []
        parts += [f"tg{self.decode}"] if self.decode else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def tokens(self) -> int:
        """That a context needs."""
        return self.depth + self.prompt + self.decode


def make_cases(
    prompts: Sequence[int],
    decodes: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    depths: Sequence[int],
    batches: Sequence[int],
) -> list[Case]:
    """Every prompt alone, every number of decoded tokens alone, and every pair of both, at every depth and batch; 0
    means none. UsageError when nothing is left to measure."""
    cases = []
    for depth in depths or (0,):
        for batch in batches or (0,):
            cases += [Case(prompt, 0, depth, batch) for prompt in prompts if prompt]
            cases += [Case(0, decode, depth, batch) for decode in decodes if decode]
            cases += [Case(prompt, decode, depth, batch) for prompt, decode in pairs if prompt or decode]
    if not cases:
        raise UsageError("nothing to measure: give -p, -n or -pg")
    return list(dict.fromkeys(cases))


def numbers(name: str, text: str, *, low: int = 0, high: int = MOST_TOKENS) -> list[int]:
    """A comma list of numbers and ranges: "128,512", "1-4", "0-1024+256", "128-1024*2". UsageError for anything else,
    and for more than 256 of them."""
    found: list[int] = []
    for part in text.split(","):
        matched = _RANGE.fullmatch(part.strip())
        if matched is None:
            if not part.strip().isdecimal() or len(part) > 9:
                raise UsageError(f"{name} must be numbers like 512, 128,512, 1-4 or 128-1024*2, got {text!r}")
            found.append(int(part))
        else:
            found += _range(name, text, *matched.groups())
    if len(found) > _MOST_NUMBERS or not all(low <= each <= high for each in found):
        raise UsageError(f"{name} must be at most {_MOST_NUMBERS} numbers from {low} to {high}, got {text!r}")
    return list(dict.fromkeys(found))


def pair(name: str, text: str) -> tuple[int, int]:
    """ "512,128": a prompt and what is decoded after it. UsageError."""
    found = [part.strip() for part in text.split(",")]
    if len(found) != 2 or not all(part.isdecimal() and len(part) < 8 and int(part) <= MOST_TOKENS for part in found):
        raise UsageError(f"{name} must be two numbers like 512,128, got {text!r}")
    return int(found[0]), int(found[1])


def _range(name: str, text: str, first: str, last: str, kind: str | None, by: str | None) -> list[int]:
    at, end, step = int(first), int(last), int(by or 1)
    if at > end or (step < 2 if kind == "*" else step < 1) or (kind == "*" and not at):
        raise UsageError(f"{name} has a range that does not go up, in {text!r}")
    found: list[int] = []
    while at <= end and len(found) <= _MOST_NUMBERS:
        found.append(at)
        at = at * step if kind == "*" else at + step
    return found
