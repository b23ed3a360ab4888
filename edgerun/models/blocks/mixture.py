"""A mixture of experts (Shazeer et al. 2017): a router chooses, for each token, a few of many feed-forwards.

All rows of a wave pass a layer's experts together, so that each is asked for once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from edgerun.kernels.interface import F32, I32, Activation, Expert, ExpertVectors
from edgerun.kernels.recording import ExpertPlaces, Guess, Recording, TokenExperts
from edgerun.models.blocks.base import Cancel, Here, Recorded, check, ones
from edgerun.models.blocks.beside import Beside
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, norm_tensors
from edgerun.models.blocks.expert_sums import RowsResults, Sums, SumsLayout
from edgerun.models.blocks.norms import apply_norm
from edgerun.models.blocks.products import scale_and_bias
from edgerun.models.blocks.router import Choices, ChoicesLayout, Router
from edgerun.models.blocks.shared_expert import SharedExpert
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.families import NormKind
from edgerun.models.routed_rows import EXPERT_ROWS, RoutedRows, bounded, likeliest, slots_by_expert
from edgerun.models.scratch import Layout
from edgerun.models.spec import Units


@dataclass(frozen=True)
class Mixture:
    """x += the chosen experts of norm(x), weighted, and the shared one.

    gated, fused: experts have gates, which lie in one tensor with their ups. latent: the width that experts work in; 0:
    d_model. weighted_inputs: an expert's weight multiplies what it is fed, not what it gives. post_norm: of the sum,
    before it is added to x times `factor`. held: the experts that this rank has, all of them where it is alone;
    wherever weights or results are asked for, they are counted from the first of these. units: of all experts' columns,
    where they are summed apart: then what one of them has of an expert is an expert of its own, of which there are
    `slices` for each."""

    d_model: int
    d_ff: int
    router: Router
    activation: Activation
    eps: float
    shared: SharedExpert | None
    held: range
    norm: str = "ffn_norm"
    norm_kind: NormKind = "rms"
    gated: bool = True
    fused: bool = False
    latent: int = 0
    weighted_inputs: bool = False
    beside: Beside | None = None
    post_norm: str = ""
    post_eps: float = 0.0
    factor: float = 1.0
    units: Units | None = None

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.router.experts

    @property
    def used(self) -> int:
        """How many a token is sent to."""
        return self.router.routing.used

    @property
    def slices(self) -> int:
        """What each expert is cut into on this rank."""
        return 1 if self.units is None else max(1, len(self.units.held))

    @property
    def width(self) -> int:
        """Of what experts are fed and give."""
        return self.latent or self.d_model

    @property
    def is_absent(self) -> bool:
        """Whether this rank has nothing of it."""
        return not self.held and self.shared is None and self.beside is None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        d = self.d_model
        if self.is_absent:
            return norm_tensors(self.post_norm, d) if self.post_norm else {}
        found = {**norm_tensors(self.norm, d), **self.router.tensors}
        if self.held:
            found |= self._expert_tensors()
        if self.latent:
            for part, shape in (("ffn_latent_down", (self.latent, d)), ("ffn_latent_up", (d, self.latent))):
                found |= {part: Tensor(shape), f"{part}.scale": Tensor((1,), False)}
        if self.beside is not None:
            found |= {**self.beside.dense.tensors, **norm_tensors(self.beside.experts_norm, d)}
        if self.post_norm:
            found |= norm_tensors(self.post_norm, d)
        return found | (self.shared.tensors if self.shared is not None else {})

    def _expert_tensors(self) -> dict[str, Tensor]:
        held, ff, width = len(self.held) * self.slices, self.d_ff // self.slices, self.width
        times = self.used * held / self.experts
        found = {"ffn_down_exps": Tensor((held, width, ff), times=times)}
        if self.fused:
            found["ffn_gate_up_exps"] = Tensor((held, 2 * ff, width), times=times)
        else:
            parts = ("ffn_gate_exps", "ffn_up_exps") if self.gated else ("ffn_up_exps",)
            found |= {part: Tensor((held, ff, width), times=times) for part in parts}
            found |= {f"{part}.bias": Tensor((len(self.held), self.d_ff), False) for part in parts}
            found |= {f"{part}.scale": Tensor((len(self.held),), False) for part in parts}
        found["ffn_down_exps.bias"] = Tensor((len(self.held), width), False)
        found["ffn_down_exps.scale"] = Tensor((len(self.held),), False)
        return found

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
    def wave_sums(self) -> tuple[Reduction, ...]:
        """Of a row, of all rows of a wave together; those of single chunks come after them."""
        return (Reduction(self.d_model, 0 if self.units is None else self.units.count),)

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return () if self.beside is None else self.beside.dense.sums

    @property
    def floats(self) -> int:
        shared = self.shared.floats if self.shared is not None else 0
        return sum(self.sums_layout.widths) + max(shared, self.beside.dense.floats if self.beside is not None else 0)

    def wave_floats(self, tokens: int) -> int:
        """Beside `floats`, of all rows of a wave together, at most."""
        rows = min(EXPERT_ROWS, tokens * self.used * self.slices)
        row = self.layout.floats + 2 * self.d_model + self.weighted_inputs * self.used * self.width
        row += 0 if self.units is None else self.slices * self.d_model
        return tokens * row + rows * (2 * self.d_ff + 3 * self.width)

    @cached_property
    def layout(self) -> ChoicesLayout:
        """Of its buffers."""
        return ChoicesLayout(self.d_model, self.experts, self.used, self.width, self.router.rescaled, self.slices)

    @cached_property
    def sums_layout(self) -> SumsLayout:
        """Of the buffers for results' sums."""
        return SumsLayout(self.d_model, self.latent)

    @property
    def layouts(self) -> tuple[Layout[object], ...]:
        shared = self.shared.layouts if self.shared is not None else ()
        return (self.layout, self.sums_layout, *shared, *(self.beside.dense.layouts if self.beside is not None else ()))

    def begin(self, here: Here, x: F32, b: Choices) -> None:
        """To be called before the mixer: an early router chooses, and its experts can be read meanwhile."""
        if self.router.early and not self.is_absent:
            self.router.ask(here, x, b)
            if here.tools.store.lookahead:
                here.cut(partial(self._announce, here, b))

    def forward(self, here: Here, x: F32, b: Choices) -> None:
        """x (T, d) += the experts of all rows of a wave."""
        if self.is_absent:
            here.cut(partial(self._others, here, x))
            return
        self._ask(here, x, b)
        here.cut(partial(self._experts, here, x, b), self._recorded(here, b))
        if here.tools.ranks is None:
            self._combine_alone(here, RowsResults(b.parts, b.ids, b.weights, b.h), x)

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
        several, slots_of = routed.tokens > 1, routed.slots_of
        rows, vectors = here.kernels.activations(routed.h), self._vectors(here)
        with self.lent(here, routed, some, cancelled) as batches:
            for ready in batches:
                for experts in bounded(ready, slots_of):
                    if several:
                        check(cancelled)
                    slots = [slots_of[expert.id] for expert in experts]
                    mine = [routed.rows_of[expert.id] for expert in experts]
                    here.kernels.experts_ffn(experts, rows, mine, slots, self.activation, routed.parts, vectors)

    @contextlib.contextmanager
    def lent(self, here: Here, routed: RoutedRows, some: I32, cancelled: Cancel) -> Iterator[Iterator[list[Expert]]]:
        """Some of the chosen experts (ascending) in batches, as of `WeightStore.experts`."""
        store, tokens = here.tools.store, routed.tokens
        uses = np.array([len(routed.slots_of[each]) for each in some.tolist()], np.int32) if tokens > 1 else None
        with store.experts(here.layer, some, uses, tokens, cancelled) as batches:
            later = self.router.ahead(here, tokens)
            for distance, (layer, ids) in enumerate(zip(later, routed.ahead, strict=False), 1):
                store.expect(layer, self._of_held(likeliest(ids)), distance)
            yield batches

    def combine(self, here: Here, routed: RoutedRows, x: F32) -> None:
        """x (T, d) += the sum of each row's experts, and the shared one."""
        self._combine(here, routed, x)

    # ------------------------------------------------------------------------------------------------------------

    def _combine(self, here: Here, routed: RoutedRows, x: F32) -> None:
        """x (T, d) += the sum of each row's experts, and the shared one."""
        if self.units is not None:
            self._combine_units(here, self.units, routed, x)
            return
        results = RowsResults(routed.parts, routed.ids, routed.weights, routed.normed)
        if here.tools.ranks is None:
            self._combine_alone(here, results, x)
            return
        out = np.empty_like(x)
        for part in chunks(len(x), CHUNK):
            self._sum_mine(here, results.of_rows(part), out[part])
        here.tools.ranks.all_reduce(out)
        self._finish_sum(here, out, x)

    def _combine_alone(self, here: Here, results: RowsResults, x: F32) -> None:
        """The same for a rank that has all of it, by launches alone."""
        is_added_at_once = not self.post_norm and self.beside is None and self.factor == 1.0
        for part in chunks(len(x), CHUNK):
            if is_added_at_once:
                self._sum(here, results.of_rows(part), x[part], x[part], add=True)
                continue
            out = here.tools.scratch(len(x[part])).of(self.sums_layout).total
            self._sum(here, results.of_rows(part), x[part], out)
            self._finish(here, out, x[part])

    def _sum(self, here: Here, results: RowsResults, x: F32, out: F32, *, add: bool = False) -> None:
        """out (T, d) = or += a chunk's experts, the shared one, and what stands beside them, of x (T, d)."""
        self._sum_mine(here, results, out, add=add)
        if self.beside is not None:
            self._add_beside(here, self.beside, x, out)

    def _sum_mine(self, here: Here, results: RowsResults, out: F32, *, add: bool = False) -> None:
        """out (T, d) = or += what this rank has of a chunk's experts, and of the shared one."""
        self._sum_experts(here, results, here.tools.scratch(len(out)).of(self.sums_layout), out, add=add)
        if self.shared is not None:
            self.shared.forward(here, out, results.normed)

    def _add_beside(self, here: Here, beside: Beside, x: F32, out: F32) -> None:
        """out (T, d), the experts' sum, normed, += what stands beside them, of a chunk x (T, d)."""
        apply_norm(here.kernels, here.vectors, beside.experts_norm, "rms", self.eps, out, out)
        beside.dense.add(here, x, out, here.tools.scratch(len(x)))

    def _sum_experts(self, here: Here, results: RowsResults, b: Sums, out: F32, *, add: bool) -> None:
        """out (T, d) = or += the sum of each row's experts."""
        kernels, weights = here.kernels, self._shares(results.weights)
        self._finish_parts(here, results.parts, results.ids)
        if not self.latent:
            kernels.combine(results.parts, weights, out, add=add)
            return
        wide = b.wide if add else out
        kernels.combine(results.parts, weights, b.inner)
        kernels.matmul(here.weights.matrices["ffn_latent_up"], kernels.activations(b.inner), wide)
        scale_and_bias(here, "ffn_latent_up", wide)
        if add:
            kernels.add(out, wide)

    def _combine_units(self, here: Here, units: Units, routed: RoutedRows, x: F32) -> None:
        """x (T, d) += the sum of each row's experts and the shared one, unit by unit."""
        assert here.tools.ranks is not None  # whoever is alone with units adds them, too
        sums = np.empty((len(units.held), *x.shape), np.float32)
        by_unit = routed.parts.reshape(self.slices, -1, self.width)
        for unit, (total, parts) in enumerate(zip(sums, by_unit, strict=False)):  # of no unit there is nothing to add
            self._finish_parts(here, parts, routed.ids, is_first=unit == 0)
            here.kernels.combine(parts, self._shares(routed.weights), total)
        if self.shared is not None:
            for part in chunks(len(x), CHUNK):
                self.shared.add_units(here, list(sums[:, part]), routed.normed[part])
        out = np.empty_like(x)
        here.tools.ranks.add_units(list(sums), units, out)
        self._finish_sum(here, out, x)

    def _finish_sum(self, here: Here, out: F32, x: F32) -> None:
        """x (T, d) += out, the sum of all ranks, with what stands beside it, through norm and factor."""
        if self.beside is not None:
            for part in chunks(len(x), CHUNK):
                self._add_beside(here, self.beside, x[part], out[part])
        self._finish(here, out, x)

    def _shares(self, weights: F32) -> F32:
        """What results are multiplied by, of weights (T, used), which may have multiplied the inputs already."""
        return ones(weights.size).reshape(weights.shape) if self.weighted_inputs else weights

    def _ask(self, here: Here, x: F32, b: Choices) -> None:
        """b.h, what experts are fed, and what the routers say of it."""
        apply_norm(here.kernels, here.vectors, self.norm, self.norm_kind, self.eps, x, b.h)
        if not self.router.early:
            self.router.ask(here, x if self.router.rescaled else b.h, b)
        if self.latent:
            here.kernels.matmul(here.weights.matrices["ffn_latent_down"], here.kernels.activations(b.h), b.inner)
            scale_and_bias(here, "ffn_latent_down", b.inner)

    def _announce(self, here: Here, b: Choices, cancelled: Cancel, rows: int) -> None:
        here.tools.store.expect(here.layer, self._of_held(likeliest(b.ids[:rows])), 0)

    def _others(self, here: Here, x: F32, cancelled: Cancel, rows: int) -> None:
        """x += what the other ranks computed."""
        assert here.tools.ranks is not None  # whoever holds nothing is not alone
        out = np.zeros_like(x[:rows])
        if self.units is None:
            here.tools.ranks.all_reduce(out)
        else:
            here.tools.ranks.add_units([], self.units, out)
        self._finish(here, out, x[:rows])

    def _finish(self, here: Here, out: F32, x: F32) -> None:
        """x (T, d) += out, through the norm and the factor that the model has."""
        if self.post_norm:
            eps = self.post_eps or self.eps
            apply_norm(here.kernels, here.vectors, self.post_norm, "rms", eps, out, out)
        if self.factor != 1.0:
            here.kernels.scale(out, self.factor)
        here.kernels.add(x, out)

    def _of_held(self, ids: I32) -> I32:
        """Those that this rank has, as they are counted here."""
        first = self.held.start
        if len(self.held) < self.experts:
            ids = ids[(ids >= first) & (ids < self.held.stop)] - np.int32(first)
        return self._sliced(ids)

    def _sliced(self, ids: I32) -> I32:
        """All slices of experts (..., n) side by side: (..., n * slices)."""
        if self.slices == 1:
            return ids
        each = ids[..., None] * np.int32(self.slices) + np.arange(self.slices, dtype=np.int32)
        sliced: I32 = each.reshape(*ids.shape[:-1], -1).astype(np.int32, copy=False)
        return sliced

    def _experts(self, here: Here, x: F32, b: Choices, cancelled: Cancel, rows: int) -> None:
        check(cancelled)
        here = here.within(cancelled, rows)
        routed = self._routed(here, b, rows)
        self.compute(here, routed, routed.chosen, cancelled)
        if here.tools.ranks is not None:
            self._combine(here, routed, x[:rows])
        elif rows < len(x):  # nobody's rows are the last one's copies, see `models.replay`
            b.parts[rows * self.used :] = np.tile(
                b.parts[(rows - 1) * self.used : rows * self.used], (len(x) - rows, 1)
            )

    def _recorded(self, here: Here, b: Choices) -> Recorded | None:
        """Launches in place of `_experts`, for one row of a model that is whole."""
        where = here.tools.store.places(here.layer)
        if where is None or len(b.ids) != 1 or here.tools.ranks is not None or self.weighted_inputs:
            return None
        guesses = self.router.ahead(here, 1)

        def lay_out(recording: Recording) -> bool:
            return recording.lay_out_experts(self._token_experts(here, where, guesses, b))

        return Recorded(here.layer, lay_out, partial(self._expect, here, guesses, b))

    def _token_experts(self, here: Here, where: ExpertPlaces, later: tuple[int, ...], b: Choices) -> TokenExperts:
        """What a recording does for one row."""
        guesses = []
        for layer, (_, ids) in zip(later, b.ahead, strict=False):
            theirs = here.tools.store.places(layer)
            assert theirs is not None  # a store that has places has those of all layers
            guesses.append(Guess(ids[0], theirs.places))
        room = here.tools.found.room(here.layer, self.used, len(guesses))
        return TokenExperts(
            where, b.ids[0], room, b.inner, b.parts, self.activation, tuple(guesses), self._vectors(here)
        )

    def _expect(self, here: Here, later: tuple[int, ...], b: Choices) -> None:
        """Hints of what the routers of later layers say."""
        for distance, (layer, (_, ids)) in enumerate(zip(later, b.ahead, strict=False), 1):
            here.tools.store.expect(layer, self._of_held(likeliest(ids)), distance)

    def _vectors(self, here: Here) -> ExpertVectors:
        """What a file may have beside the experts' first matrices."""
        biases = [here.vectors.get(f"ffn_{part}_exps.bias") for part in ("gate", "up")]
        scales = [here.vectors.get(f"ffn_{part}_exps.scale") for part in ("gate", "up")]
        # What one unit has of an expert is an expert of its own, of those columns.
        gate_bias, up_bias = (None if each is None else each.reshape(-1, self.d_ff // self.slices) for each in biases)
        gate_scale, up_scale = (
            each if each is None or self.slices == 1 else np.repeat(each, self.slices) for each in scales
        )
        return ExpertVectors(gate_scale=gate_scale, gate_bias=gate_bias, up_scale=up_scale, up_bias=up_bias)

    def _finish_parts(self, here: Here, parts: F32, ids: I32, *, is_first: bool = True) -> None:
        """Factors and biases that a file may have beside the experts' last matrices; biases with the first unit's."""
        scale, bias = here.vectors.get("ffn_down_exps.scale"), here.vectors.get("ffn_down_exps.bias")
        bias = bias if is_first else None
        if scale is None and bias is None:
            return
        biases = None if bias is None else bias.reshape(-1, self.width)
        if len(self.held) == self.experts:
            here.kernels.affine(parts, ids.reshape(-1), scale, biases)
            return
        mine = ids.reshape(-1) - np.int32(self.held.start)
        outside = (mine < 0) | (mine >= len(self.held))
        mine[outside] = 0
        here.kernels.affine(parts, mine, scale, biases)
        parts[outside] = 0

    def _routed(self, here: Here, b: Choices, rows: int) -> RoutedRows:
        """What the router chooses for the first rows of b.h."""
        ids, weights = b.ids[:rows].copy(), b.weights[:rows]  # whoever learns from ids may keep them
        here.tools.routed(here.layer, ids)
        slots_of, rows_of = slots_by_expert(ids)
        if len(self.held) == self.experts:
            here.tools.store.routed(here.layer, self._sliced(ids))
        else:
            slots_of, rows_of = (
                {each - self.held.start: found for each, found in of.items() if each in self.held}
                for of in (slots_of, rows_of)
            )
        if self.slices > 1:  # slots of one slice of all choices, then those of the next
            step, pieces = ids.size, range(self.slices)
            slots_of = {
                each * self.slices + i: at + np.int32(i * step) for each, at in slots_of.items() for i in pieces
            }
            rows_of = {each * self.slices + i: at for each, at in rows_of.items() for i in pieces}
        fed = b.inner[:rows]
        if self.weighted_inputs:  # every choice has an input of its own
            fed, rows_of = np.repeat(fed, self.used, axis=0) * weights.reshape(-1, 1), slots_of
        ahead, parts = [ids[:rows] for _, ids in b.ahead], b.parts[: rows * self.used * self.slices]
        return RoutedRows(here.layer, b.h[:rows], fed, ids, weights, slots_of, rows_of, ahead, parts)
