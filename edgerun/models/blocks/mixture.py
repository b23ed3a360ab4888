"""A mixture of experts (Shazeer et al. 2017): a router chooses, for each token, a few of many feed-forwards.

All rows of a wave pass a layer's experts together, so that each is asked for once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from edgerun.kernels.interface import F32, I32, Activation, Expert, RouterKind
from edgerun.models.blocks.base import Cancel, Here, check
from edgerun.models.blocks.declared import Part, Product, Tensor
from edgerun.models.blocks.shared_expert import SharedExpert
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.routed_rows import EXPERT_ROWS, RoutedRows, bounded, likeliest, slots_by_expert
from edgerun.models.scratch import Layout, Role, Take
from edgerun.models.spec import ModelSpec
from edgerun.weights import LayerWeights

MOST_AHEAD = 2  # routers of later layers that are asked beside a layer's own


class Choices:
    """Buffers of what a router says of T rows: h (T, d) what experts are fed; router (T, experts) its logits; ahead:
    those of later layers' routers; parts (T * used, d): experts' results."""

    def __init__(self, layout: ChoicesLayout, rows: int, take: Take) -> None:
        self.h, self.router = take(layout.d_model), take(layout.experts)
        self.ahead = [take(layout.experts) for _ in range(MOST_AHEAD)]
        self.parts = take(layout.used * layout.d_model).reshape(rows * layout.used, layout.d_model)


@dataclass(frozen=True)
class ChoicesLayout:
    """Of `Choices`."""

    d_model: int
    experts: int
    used: int
    role: Role = "choices"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.d_model, *(self.experts,) * (1 + MOST_AHEAD), self.used * self.d_model)

    def make(self, rows: int, take: Take) -> Choices:
        return Choices(self, rows, take)


@dataclass(frozen=True)
class Mixture:
    """x += the chosen experts of norm(x), weighted, and the shared one. early: the router reads what enters the layer,
    before the mixer. renormalise: the chosen experts' weights sum to one, then times `scale`. held: the experts that
    this rank has, all of them where it is alone; wherever weights or results are asked for, they are counted from the
    first of these."""

    d_model: int
    experts: int
    used: int
    d_ff: int
    router: RouterKind
    renormalise: bool
    scale: float
    early: bool
    activation: Activation
    eps: float
    shared: SharedExpert | None
    held: range

    @property
    def is_absent(self) -> bool:
        """Whether this rank has nothing of it."""
        return not self.held and self.shared is None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        e, ff, d = self.experts, self.d_ff, self.d_model
        if self.is_absent:
            return {}
        found = {"ffn_norm": Tensor((d,)), "ffn_gate_inp": Tensor((e, d))}
        if self.held:
            held, times = len(self.held), self.used * len(self.held) / e
            found |= {f"ffn_{part}_exps": Tensor((held, ff, d), times=times) for part in ("gate", "up")}
            found["ffn_down_exps"] = Tensor((held, d, ff), times=times)
        return found | (self.shared.tensors if self.shared is not None else {})

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @cached_property
    def expert_products(self) -> tuple[Product, ...]:
        """Of every expert; its input comes normed."""
        d, ff = self.d_model, self.d_ff
        gate_up = (Part("gate", "ffn_gate_exps", 0, ff), Part("up", "ffn_up_exps", 0, ff))
        return Product("expert_in", d, gate_up), Product("expert_down", ff, (Part("t", "ffn_down_exps", 0, d),))

    @property
    def floats(self) -> int:
        return self.shared.floats if self.shared is not None else 0

    def wave_floats(self, tokens: int) -> int:
        """Beside `floats`, of all rows of a wave together, at most."""
        rows = min(EXPERT_ROWS, tokens * self.used)
        return tokens * ((self.used + 1) * self.d_model + 3 * self.experts) + rows * (2 * self.d_ff + 3 * self.d_model)

    @cached_property
    def layout(self) -> ChoicesLayout:
        """Of its buffers."""
        return ChoicesLayout(self.d_model, self.experts, self.used)

    @property
    def layouts(self) -> tuple[Layout[object], ...]:
        return (self.layout, *(self.shared.layouts if self.shared is not None else ()))

    def begin(self, here: Here, x: F32, b: Choices) -> None:
        """To be called before the mixer: an early router chooses, and its experts can be read meanwhile."""
        if self.early and not self.is_absent:
            self._routers(here, x, b)
            if here.tools.store.lookahead:
                here.cut(partial(self._announce, here, b))

    def forward(self, here: Here, x: F32, b: Choices) -> None:
        """x (T, d) += the experts of all rows of a wave."""
        if self.is_absent:
            here.cut(partial(self._others, here, x))
            return
        self._ask(here, x, b)
        here.cut(partial(self._experts, here, x, b))

    # -- in three steps, for those who compute some experts themselves -------------------------------------------

    def choose(self, here: Here, x: F32, b: Choices) -> RoutedRows:
        """Which experts each row of x (T, d) goes to."""
        self._ask(here, x, b)
        return self._routed(here, b, len(x))

    def compute(self, here: Here, routed: RoutedRows, some: I32, cancelled: Cancel) -> None:
        """The results of some of the chosen experts (ascending) into `routed.parts`."""
        if len(self.held) < self.experts:
            routed.parts[:] = 0  # others have the rest
        if not len(some):
            return
        several, slots_of = len(routed.h) > 1, routed.slots_of
        rows = here.kernels.activations(routed.h)
        with self.lent(here, routed, some, cancelled) as batches:
            for ready in batches:
                for experts in bounded(ready, slots_of):
                    if several:
                        check(cancelled)
                    slots = [slots_of[expert.id] for expert in experts]
                    mine = [routed.rows_of[expert.id] for expert in experts]
                    here.kernels.experts_ffn(experts, rows, mine, slots, self.activation, routed.parts)

    @contextlib.contextmanager
    def lent(self, here: Here, routed: RoutedRows, some: I32, cancelled: Cancel) -> Iterator[Iterator[list[Expert]]]:
        """Some of the chosen experts (ascending) in batches, as of `WeightStore.experts`."""
        store, tokens = here.tools.store, len(routed.h)
        uses = np.array([len(routed.slots_of[each]) for each in some.tolist()], np.int32) if tokens > 1 else None
        with store.experts(here.layer, some, uses, tokens, cancelled) as batches:
            for later, logits in zip(self._later(here, tokens), routed.ahead, strict=False):
                store.expect(later, self._of_held(likeliest(logits, self.used)), later - here.layer)
            yield batches

    def combine(self, here: Here, routed: RoutedRows, x: F32) -> None:
        """x (T, d) += the sum of each row's experts, and the shared one."""
        ranks = here.tools.ranks
        out = x if ranks is None else np.zeros_like(x)
        here.kernels.combine(routed.parts, routed.weights, out, add=True)
        if self.shared is not None:
            for part in chunks(len(x), CHUNK):
                self.shared.forward(here, out[part], routed.h[part])
        if ranks is not None:
            ranks.all_reduce(out)
            here.kernels.add(x, out)

    # ------------------------------------------------------------------------------------------------------------

    def _ask(self, here: Here, x: F32, b: Choices) -> None:
        """b.h, and what the routers say of it."""
        here.kernels.rms_norm(x, here.vectors["ffn_norm"], self.eps, b.h)
        if not self.early:
            self._routers(here, b.h, b)

    def _announce(self, here: Here, b: Choices, cancelled: Cancel, rows: int) -> None:
        here.tools.store.expect(here.layer, self._of_held(likeliest(b.router[:rows], self.used)), 0)

    def _others(self, here: Here, x: F32, cancelled: Cancel, rows: int) -> None:
        """x += what the other ranks computed."""
        out = np.zeros_like(x[:rows])
        assert here.tools.ranks is not None  # whoever holds nothing is not alone
        here.tools.ranks.all_reduce(out)
        here.kernels.add(x[:rows], out)

    def _of_held(self, ids: I32) -> I32:
        """Those that this rank has, as they are counted here."""
        first = self.held.start
        return ids if len(self.held) == self.experts else ids[(ids >= first) & (ids < self.held.stop)] - np.int32(first)

    def _experts(self, here: Here, x: F32, b: Choices, cancelled: Cancel, rows: int) -> None:
        check(cancelled)
        routed = self._routed(here, b, rows)
        self.compute(here, routed, routed.chosen, cancelled)
        self.combine(here, routed, x[:rows])

    def _routers(self, here: Here, h: F32, b: Choices) -> None:
        """This layer's router and, for a store that reads ahead, those of the next layers for the same input: the
        residual stream changes little from layer to layer, so they mostly name the experts that these layers will
        choose."""
        with contextlib.ExitStack() as stack:  # a mixture's dense weights all stay, so that several may be lent
            later: list[LayerWeights] = []
            for layer in self._later(here, len(h)):
                later.append(stack.enter_context(here.tools.store.layer(layer)))
            matrices = [each.matrices["ffn_gate_inp"] for each in (here.weights, *later)]
            logits = [b.router, *b.ahead[: len(later)]]
            here.kernels.matmul_many(matrices, here.kernels.activations(h), logits)

    def _later(self, here: Here, tokens: int) -> range:
        """The layers whose routers are asked beside this one's; a prompt needs nearly all of the next's anyway."""
        ahead = min(here.tools.store.lookahead, MOST_AHEAD if tokens == 1 else 1)
        return range(here.layer + 1, min(here.layer + 1 + ahead, here.tools.n_layers))

    def _routed(self, here: Here, b: Choices, rows: int) -> RoutedRows:
        """What the router chooses for the first rows of b.h."""
        ids, weights = here.kernels.route(
            b.router[:rows], self.used, self.router, renormalise=self.renormalise, scale=self.scale
        )
        here.tools.routed(here.layer, ids)
        slots_of, rows_of = slots_by_expert(ids)
        if len(self.held) == self.experts:
            here.tools.store.routed(here.layer, ids)
        else:
            slots_of, rows_of = (
                {each - self.held.start: found for each, found in of.items() if each in self.held}
                for of in (slots_of, rows_of)
            )
        ahead, parts = [each[:rows] for each in b.ahead], b.parts[: rows * self.used]
        return RoutedRows(here.layer, b.h[:rows], weights, slots_of, rows_of, ahead, parts)


def mixture_of(spec: ModelSpec, layer: int) -> Mixture:
    """A layer's experts, as its family and numbers say."""
    numbers = spec.layers[layer]
    return Mixture(
        d_model=spec.d_model,
        experts=numbers.n_experts,
        used=numbers.n_experts_used,
        d_ff=numbers.d_ff_expert,
        router=spec.router,
        renormalise=spec.family.renormalise,
        scale=spec.expert_scale,
        early=spec.family.early_router,
        activation=spec.activation,
        eps=spec.norm_eps,
        shared=SharedExpert(spec.d_model, numbers.d_ff_shared, spec.activation) if numbers.d_ff_shared else None,
        held=range(numbers.n_experts) if spec.shard is None else spec.shard.experts[layer],
    )
