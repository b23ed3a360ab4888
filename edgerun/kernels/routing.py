"""How a router's logits become experts and weights, and what that is in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

RouterKind = Literal["softmax", "sigmoid", "softmax_topk", "sqrt_softplus"]
ROUTER_KINDS: dict[RouterKind, int] = {"softmax": 0, "sigmoid": 1, "softmax_topk": 2, "sqrt_softplus": 3}
LEAST_SUM = np.float32(6.103515625e-5)  # the smallest normal number of f16, as in llama.cpp


@dataclass(frozen=True)
class Routing:
    """Scores are what `kind` makes of the logits: softmax over all; sigmoid and sqrt_softplus (the root of softplus)
    each by itself; softmax_topk the logits themselves, of which the chosen ones pass a softmax at the end. The `used`
    best are chosen; renormalise: their weights sum to one; then times `scale`.

    groups > 1: only experts of the `groups_used` best groups may be chosen, where a group of neighbours is as good as
    its two best together (DeepSeek-V3).
    """

    kind: RouterKind
    used: int
    renormalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1


def check_routing(routing: Routing, experts: int) -> None:
    """UsageError unless so many of so many experts and groups can be chosen in this way."""
    if routing.kind not in ROUTER_KINDS:
        raise UsageError(f"unknown router {routing.kind!r}; choose softmax, softmax_topk, sigmoid or sqrt_softplus")
    if not 1 <= routing.used <= experts:
        raise UsageError(f"cannot choose {routing.used} of {experts} experts")
    if routing.groups > 1 and (experts % routing.groups or not 1 <= routing.groups_used <= routing.groups):
        raise UsageError(f"cannot use {routing.groups_used} of {routing.groups} groups of {experts} experts")


def route(logits: F32, routing: Routing, bias: F32 | None = None) -> tuple[I32, F32]:
    """ids and weights (T, used): see `interface.Kernels.route`."""
    used = routing.used
    check_routing(routing, logits.shape[1])
    scores = _scores_of(logits, routing.kind)
    ids = np.argsort(-_allowed(scores if bias is None else scores + bias, routing), axis=1, kind="stable")[:, :used]
    weights = np.take_along_axis(scores, ids, axis=1)
    if routing.kind == "softmax_topk":
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
    if routing.renormalise:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), LEAST_SUM)
    return ids.astype(np.int32), (weights * np.float32(routing.scale)).astype(np.float32)


def _scores_of(logits: F32, kind: RouterKind) -> F32:
    """Router logits (T, experts) -> what experts are weighted by."""
    if kind == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    if kind == "softmax":
        scores = np.asarray(np.exp(logits - logits.max(axis=1, keepdims=True)), np.float32)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True), np.float32)
    if kind == "sqrt_softplus":
        return np.asarray(np.sqrt(np.logaddexp(logits, np.float32(0))), np.float32)
    return logits


def _allowed(scores: F32, routing: Routing) -> F32:
    """The scores (T, experts), -inf where the expert's group is none of the best."""
    if routing.groups <= 1:
        return scores
    tokens, experts = scores.shape
    by_group = scores.reshape(tokens, routing.groups, -1)
    best = np.sort(by_group, axis=2)[:, :, -2:]
    order = np.argsort(-best.sum(axis=2), axis=1, kind="stable")[:, : routing.groups_used]
    inside = np.zeros(by_group.shape[:2], bool)
    np.put_along_axis(inside, order, True, axis=1)
    return np.where(inside[:, :, None], by_group, np.float32(-np.inf)).reshape(tokens, experts)
