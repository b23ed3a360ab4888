"""Routing that was recorded: which experts tokens were sent to, and what hits a cache would have had with it."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.errors import UsageError
from edgerun.models import ModelSpec
from edgerun.options import as_whole, items_of, refused
from edgerun.planning.expert_hits import AnswerHits, answer_hits
from edgerun.weights.eviction import DecayedFrequency, hits_by_token, mean_hits, tokens_that_fill


def checked_routing(routing: object) -> list[list[list[int]]] | None:
    """Expert ids by token and layer, none for layers without experts, the same ones for each token. UsageError for
    anything else; None stays."""
    if routing is None:
        return None
    tokens: list[list[list[int]]] = []
    for token in items_of(routing) or ():
        layers = [ids for layer in items_of(token) or () if (ids := _expert_ids(layer)) is not None]
        if len(layers) == len(items_of(token) or ()) and any(layers):
            tokens.append(layers)
    if not tokens or len(tokens) < len(items_of(routing) or ()) or len({tuple(map(bool, each)) for each in tokens}) > 1:
        raise refused("routing", "a list over tokens of lists over layers of expert ids", routing)
    return tokens


def _expert_ids(layer: object) -> list[int] | None:
    """None where they are not all whole numbers from 0 on."""
    items = items_of(layer)
    ids = [number for number in map(as_whole, items or ()) if number is not None and number >= 0]
    return ids if items is not None and len(ids) == len(items) else None


def replayed(
    routing: Sequence[Sequence[Sequence[int]]],
    slots: int,
    spec: ModelSpec,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    warm: bool,
) -> tuple[float, AnswerHits]:
    """Hits that a cache of so many experts has on this routing: after its first third, and in the answer that its
    beginning is, from an empty cache or, `warm`, one that earlier runs have filled. Beyond its end all goes on as
    after its first third."""
    widest = max(i for token in routing for layer in token for i in layer)
    if len(routing[0]) != spec.n_layers or widest >= spec.n_experts:
        raise UsageError(
            f"the routing is of {len(routing[0])} layers and at least {widest + 1} experts, "
            f"the model has {spec.n_layers} layers of {spec.n_experts}"
        )
    policy = DecayedFrequency(spec.n_layers, spec.n_experts)
    tokens = hits_by_token(policy, routing, slots, spec.n_experts)
    full = mean_hits(tokens[len(routing) // 3 :])
    answer = [] if warm else [hits / uses for hits, uses in tokens[prompt_tokens:]]
    return full, answer_hits(answer, full, decode_tokens, max(0, tokens_that_fill(tokens, slots) - prompt_tokens))
