"""How a router's logits become experts and weights. A few hundred numbers a token: numpy is the only implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

RouterKind = Literal["softmax", "sigmoid", "softmax_topk", "sqrt_softplus"]
_LEAST_SUM = np.float32(6.103515625e-5)  # the smallest normal number of f16, as in llama.cpp


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


def route(logits: F32, routing: Routing, bias: F32 | None = None) -> tuple[I32, F32]:
    """See `interface.Kernels.route`."""
    used, experts = routing.used, logits.shape[1]
    if not 1 <= used <= experts:
        raise UsageError(f"cannot choose {used} of {experts} experts")
    scores = scores_of(logits, routing.kind)
    ids = np.argsort(-_allowed(choosing(scores, bias), routing), axis=1, kind="stable")[:, :used]
    weights = scores[:, ids[0]] if len(ids) == 1 else np.take_along_axis(scores, ids, axis=1)  # one token is in a hurry
    if routing.kind == "softmax_topk":
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
    if routing.renormalise:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _LEAST_SUM)
    return ids.astype(np.int32), (weights * np.float32(routing.scale)).astype(np.float32)


def scores_of(logits: F32, kind: RouterKind) -> F32:
    """Router logits (T, experts) -> what experts are weighted by. UsageError for an unknown kind."""
    if kind == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    if kind == "softmax":
        scores = np.asarray(np.exp(logits - logits.max(axis=1, keepdims=True)), np.float32)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True), np.float32)
    if kind == "sqrt_softplus":
        return np.asarray(np.sqrt(np.logaddexp(logits, np.float32(0))), np.float32)
    if kind == "softmax_topk":
        return logits
    raise UsageError(f"unknown router {kind!r}; choose softmax, softmax_topk, sigmoid or sqrt_softplus")


def choosing(scores: F32, bias: F32 | None) -> F32:
    """What experts are chosen by, which need not be what they are weighted by. bias: (experts,)."""
    return scores if bias is None else scores + bias


def _allowed(scores: F32, routing: Routing) -> F32:
    """The scores (T, experts), -inf where the expert's group is none of the best."""
    if routing.groups <= 1:
        return scores
    tokens, experts = scores.shape
    if experts % routing.groups or not 1 <= routing.groups_used <= routing.groups:
        raise UsageError(f"cannot use {routing.groups_used} of {routing.groups} groups of {experts} experts")
    by_group = scores.reshape(tokens, routing.groups, -1)
    best = np.sort(by_group, axis=2)[:, :, -2:]
    order = np.argsort(-best.sum(axis=2), axis=1, kind="stable")[:, : routing.groups_used]
    inside = np.zeros(by_group.shape[:2], bool)
    np.put_along_axis(inside, order, True, axis=1)
    return np.where(inside[:, :, None], by_group, np.float32(-np.inf)).reshape(tokens, experts)
