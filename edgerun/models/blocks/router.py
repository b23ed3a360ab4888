"""Who chooses a token's experts: a matrix that scores them all."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.kernels.routing import Routing
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Tensor
from edgerun.models.scratch import Role, Take
from edgerun.weights.predictor import MOST_AHEAD

_ALWAYS_AHEAD = 2  # later layers whose routers are asked beside a layer's own, whatever they cost
_SMALL_ROUTER = 1 / 256  # of what a token's experts multiply: further routers are asked where one takes no more
_LOGIT_BIAS, _CHOICE_BIAS = "ffn_gate_inp.bias", "exp_probs_b.bias"


def most_ahead(experts: int, used: int, d_ff: int) -> int:
    """How many later layers' routers to ask: the more, the sooner the disk hears of what will be missing. But each is
    read for every token, and where experts are many and narrow (Qwen3.6: 256 of 512) one takes as long as a twentieth
    of the experts that are used."""
    return MOST_AHEAD if experts <= _SMALL_ROUTER * 3 * used * d_ff else _ALWAYS_AHEAD


class Choices:
    """Buffers of what a router says of T rows: h (T, d) the normed input; asked (T, d) what the router reads where that
    is something else; router (T, experts) its logits; ids and weights (T, used): whom it chooses; ahead: logits of
    later layers' routers, and ids of whom these would choose; inner (T, width) what experts are fed where that is
    narrower; parts (T * used * slices, width): experts' results."""

    def __init__(self, layout: ChoicesLayout, rows: int, take: Take) -> None:
        d, width = layout.d_model, layout.width
        self.h, self.router = take(d), take(layout.experts)
        self.asked = take(d) if layout.rescaled else self.h
        self.inner = take(width) if width != d else self.h
        self.ids, self.weights = take(layout.used).view(np.int32), take(layout.used)
        self.ahead = [(take(layout.experts), take(layout.used).view(np.int32)) for _ in range(MOST_AHEAD)]
        self.parts = take(layout.results * width).reshape(rows * layout.results, width)


@dataclass(frozen=True)
class ChoicesLayout:
    """Of `Choices`. slices: what each expert is cut into (`Mixture.slices`)."""

    d_model: int
    experts: int
    used: int
    width: int
    rescaled: bool
    slices: int = 1
    role: Role = "choices"

    @property
    def results(self) -> int:
        """Of a row."""
        return self.used * self.slices

    @property
    def widths(self) -> tuple[int, ...]:
        d, width = self.d_model, self.width
        more = (d,) * self.rescaled + (width,) * (width != d)
        return (d, *more, *(self.experts,) * (1 + MOST_AHEAD), *(self.used,) * (2 + MOST_AHEAD), self.results * width)

    @property
    def floats(self) -> int:
        """Of all buffers, a row."""
        return sum(self.widths)

    def make(self, rows: int, take: Take) -> Choices:
        return Choices(self, rows, take)


@dataclass(frozen=True)
class Router:
    """early: it reads what enters the layer, before the mixer. rescaled: it reads the residual stream
    through an RMSNorm of its own, over the root of d_model. later: the next layers that have a router."""

    d_model: int
    experts: int
    routing: Routing
    eps: float
    early: bool = False
    rescaled: bool = False
    later: tuple[int, ...] = ()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        found = {
            "ffn_gate_inp": Tensor((self.experts, self.d_model)),
            _LOGIT_BIAS: Tensor((self.experts,), False),
            _CHOICE_BIAS: Tensor((self.experts,), False),
        }
        return found | ({"ffn_gate_inp.scale": Tensor((self.d_model,))} if self.rescaled else {})

    def ask(self, here: Here, x: F32, b: Choices) -> None:
        """b.router of x (T, d), b.ids and b.weights, and for a store that reads ahead what the routers of the next
        layers say of the same input: the residual stream changes little from layer to layer, so they mostly name the
        experts that these layers will choose."""
        kernels, store = here.kernels, here.tools.store
        if self.rescaled:
            kernels.rms_norm(x, here.vectors["ffn_gate_inp.scale"], self.eps, b.asked)
            kernels.scale(b.asked, self.d_model**-0.5)
            x = b.asked
        with contextlib.ExitStack() as stack:  # a mixture's dense weights all stay, so that several may be lent
            asked = [here.weights, *(stack.enter_context(store.layer(each)) for each in self.ahead(here, len(x)))]
            logits = [b.router, *(each for each, _ in b.ahead[: len(asked) - 1])]
            kernels.matmul_many([each.matrices["ffn_gate_inp"] for each in asked], kernels.activations(x), logits)
            for weights, each in zip(asked, logits, strict=True):
                bias = weights.vectors.get(_LOGIT_BIAS)
                if bias is not None:
                    kernels.add(each, bias)
            kernels.route(b.router, self.routing, b.ids, b.weights, here.vectors.get(_CHOICE_BIAS))
            for weights, (each, ids) in zip(asked[1:], b.ahead, strict=False):
                kernels.route(each, self.routing, ids, None, weights.vectors.get(_CHOICE_BIAS))

    def ahead(self, here: Here, tokens: int) -> tuple[int, ...]:
        """The layers whose routers are asked beside this one's; a prompt needs nearly all of the next's anyway."""
        return self.later[: min(here.tools.store.lookahead, MOST_AHEAD if tokens == 1 else 1)]
