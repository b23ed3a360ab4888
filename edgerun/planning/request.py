"""What a whole request takes: a prompt of n tokens, then m more, and what binds each of the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgerun.models import ModelSpec
from edgerun.planning.costs import pass_operations
from edgerun.planning.expert_hits import AnswerHits, filling_hits
from edgerun.planning.memory import MemoryPlan
from edgerun.planning.rates import Rates
from edgerun.planning.speed import Speed, TypeSizes, operation_s, predict_speed
from edgerun.weights.catalog import Catalog

Bound = Literal["computing", "memory", "disk"]


@dataclass(frozen=True)
class RequestPrediction:
    """prompt_s: until the first token; token_s: of a token on average; bytes are a token's, of the middle one.
    later_...: of the last two thirds of the tokens that are decoded, which `edgerun bench` counts."""

    prompt_tokens: int
    decode_tokens: int
    prompt_s: float
    token_s: float
    memory_bytes_per_token: float
    disk_bytes_per_token: float
    hit_rate: float
    prompt_bound: Bound
    decode_bound: Bound
    later_token_s: float
    later_disk_bytes_per_token: float

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

    @property
    def later_tok_s(self) -> float:
        """Of the last two thirds."""
        return 1 / self.later_token_s


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
    hits: AnswerHits | None = None,
    packed: bool = False,
    warm: bool = False,
) -> RequestPrediction:
    """What a token costs grows evenly with what stands before it, so the one in the middle is the average. depth:
    tokens that are there already. hits: of the expert cache where they are known; None: what such a cache has with
    other models, which is empty before the request or, `warm`, full. rates, packed, warm: as of `predict_speed`."""
    first = depth + prompt_tokens
    if hits is None:
        streamed = plan.mode == "experts"
        hits = filling_hits(spec, plan.cached_share, first, decode_tokens, warm=warm) if streamed else AnswerHits(1, 1)

    def decoding(hit_rate: float, new_rate: float, position: int) -> Speed:
        return predict_speed(
            catalog,
            spec,
            plan,
            sizes,
            rates,
            hit_rate=hit_rate,
            new_rate=new_rate,
            prompt_tokens=max(1, prompt_tokens),
            position=position,
            packed=packed,
            warm=warm,
        )

    speed = decoding(hits.all, hits.new, first + decode_tokens // 2)
    later = decoding(hits.later, hits.later_new, first + 2 * decode_tokens // 3)
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
        1 / later.decode_tok_s,
        later.read_bytes_per_token,
    )
