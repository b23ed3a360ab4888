"""What the caller may ask of a generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]
"""`f(ids, logits) -> logits`: ids (n,) of the prompt and of what was generated, logits (vocab,) of the next
token, which may be changed in place. Runs before everything else that changes logits."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Defaults are llama.cpp's; so is the order: logit bias,
    penalties, top-k, typical, top-p, min-p, temperature.

    max_tokens: at most this many; None: until the model ends or the context is full.
    temperature: 0 takes the likeliest token and ignores what else there is.
    top_k: keep the k likeliest (0: all). top_p: keep the fewest that sum to p (1: all).
    min_p: keep those at least min_p times as likely as the likeliest (0: all).
    typical_p: keep the locally typical that sum to p (1: all).
    repeat_penalty: divide positive logits of recent tokens by it, multiply negative ones (1: off).
    frequency_penalty, presence_penalty: subtract, per occurrence and once, from logits of recent tokens.
    repeat_last_n: how many tokens are recent, prompt included (0: none, -1: all).
    logit_bias: token id -> added to its logit (-inf forbids it).
    seed: the same seed, prompt and options give the same tokens; None: another at each call.
    stop: strings that end the text; they do not appear in it.
    ignore_eos: the model may not end by itself.
    logprobs: report each token's log-probability and this many alternatives; None: do not.
    processors: callables that see and change the logits, see `LogitsProcessor`.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "processors", tuple(self.processors))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        _check(all(isinstance(s, str) and s for s in stop), "stop", stop, "strings that are not empty")
        _check(all(callable(p) for p in self.processors), "processors", self.processors, "callables")
        _check_int("max_tokens", self.max_tokens, 0, optional=True)
        _check_int("logprobs", self.logprobs, 0, optional=True)
        _check_int("seed", self.seed, 0, optional=True)
        _check_int("top_k", self.top_k, 0)
        _check_int("repeat_last_n", self.repeat_last_n, -1)
        _check_number("temperature", self.temperature, 0, math.inf)
        for name in ("top_p", "min_p", "typical_p"):
            _check_number(name, getattr(self, name), 0, 1)
        _check_number("repeat_penalty", self.repeat_penalty, 0, math.inf)
        _check(self.repeat_penalty > 0, "repeat_penalty", self.repeat_penalty, "above 0")
        _check_number("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _check_number("presence_penalty", self.presence_penalty, -math.inf, math.inf)

    def with_options(self, options: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced. UsageError for a name that is none of them."""
        unknown = sorted(set(options) - _NAMES)
        if unknown:
            known = ", ".join(sorted(_NAMES))
            raise UsageError(f"unknown sampling option {', '.join(unknown)}; there are {known}")
        return replace(self, **options) if options else self

    @property
    def has_penalties(self) -> bool:
        """Whether recent tokens change the logits."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: int | None
    processors: Sequence[LogitsProcessor]


_NAMES = frozenset(f.name for f in fields(SamplingParams))


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name} must be {wanted}, got {value!r}")


def _check_int(name: str, value: object, low: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= low
    _check(good, name, value, f"a whole number from {low} on" + (" or None" if optional else ""))


def _check_number(name: str, value: object, low: float, high: float) -> None:
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    good = good and math.isfinite(float(value)) and low <= float(value) <= high  # type: ignore[arg-type]
    _check(good, name, value, f"a number from {low:g} to {high:g}".replace(" to inf", " on"))


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    checked = {}
    for key, value in dict(bias).items():
        try:
            token, amount = int(key), float(value)  # keys are strings where the mapping came as JSON
        except (TypeError, ValueError):
            raise UsageError(f"logit_bias maps token ids to numbers, got {key!r}: {value!r}") from None
        if math.isnan(amount) or amount == math.inf or token < 0:
            raise UsageError(f"logit_bias maps token ids to numbers below infinity, got {key!r}: {value!r}")
        checked[token] = amount
    return checked
