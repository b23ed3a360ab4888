"""What a whole request takes: a prompt of n tokens, then m more, and what binds each of the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgerun.models import ModelSpec
from edgerun.planning.costs import pass_operations
from edgerun.planning.memory import MemoryPlan
from edgerun.planning.rates import Rates
from edgerun.planning.speed import TypeSizes, filling_hits, operation_s, predict_speed
from edgerun.weights.catalog import Catalog

Bound = Literal["computing", "memory", "disk"]


@dataclass(frozen=True)
class RequestPrediction:
    """prompt_s: until the first token; token_s: of a token on average; bytes are a token's, of the middle one."""

    prompt_tokens: int
    decode_tokens: int
    prompt_s: float
    token_s: float
    memory_bytes_per_token: float
    disk_bytes_per_token: float
    hit_rate: float
    prompt_bound: Bound
    decode_bound: Bound

    @property
    def total_s(self) -> float:
        """Of all of it."""
        return self.prompt_s + self.decode_tokens * self.token_s

    @property
    def prompt_tok_s(self) -> float | None:
        """None without a prompt."""
        return self.prompt_tokens / self.prompt_s if self.prompt_tokens else None

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second once decoding goes on."""
        return 1 / self.token_s


def predict_request(
    catalog: Catalog,
    spec: ModelSpec,
    plan: MemoryPlan,
    sizes: TypeSizes,
    rates: Rates,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    depth: int = 0,
    hit_rate: float | None = None,
    packed: bool = False,
    warm: bool = False,
) -> RequestPrediction:
    """What a token costs grows evenly with what stands before it, so the one in the middle is the average. depth:
    tokens that are there already. hit_rate, rates, packed, warm: as of `predict_speed`; no hit_rate: of a cache that
    was empty."""
    if hit_rate is None and plan.mode == "experts":
        hit_rate = filling_hits(spec, plan.cached_share, depth + prompt_tokens, decode_tokens)
    middle = depth + prompt_tokens + decode_tokens // 2
    speed = predict_speed(
        catalog,
        spec,
        plan,
        sizes,
        rates,
        hit_rate=hit_rate,
        prompt_tokens=max(1, prompt_tokens),
        position=middle,
        packed=packed,
        warm=warm,
    )
    reads = speed.read_s_per_token > speed.compute_s_per_token
    rows = min(256, max(1, prompt_tokens))
    chunk = pass_operations(catalog, spec, sizes, rows=rows)
    computing = sum(operation_s(each, rows, rates, sizes) for each in chunk)
    waits = speed.first_token_s > 1.5 * computing * max(1, prompt_tokens) / rows
    return RequestPrediction(
        prompt_tokens,
        decode_tokens,
        speed.first_token_s if prompt_tokens else 0.0,
        1 / speed.decode_tok_s,
        speed.memory_bytes_per_token,
        speed.read_bytes_per_token,
        speed.hit_rate,
        "disk" if waits and plan.mode != "resident" else "computing" if rows > 8 else "memory",
        "disk" if reads else "memory",
    )
