"""All layers of a model, run by their plans: over a wave of many rows, or over a few whose launches are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from edgerun.events import never
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.models.blocks.base import Cancel, Cut, Here, Tools, Watch, at_once, check
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.blocks.router import Choices
from edgerun.models.chunks import CHUNK
from edgerun.models.found_experts import FoundExperts
from edgerun.models.halves import HalfSums, Turns, are_halved, both, pieces
from edgerun.models.places import Places
from edgerun.models.plan import LayerPlan, plan_of
from edgerun.models.ranks import Ranks
from edgerun.models.rope import RopeTable
from edgerun.models.scratch import Layout, Scratch
from edgerun.models.spec import ModelSpec, Rotation
from edgerun.weights import LayerWeights, WeightStore

Chunks = list[tuple[slice, Places]]  # of a wave's rows, so many as pass attention and dense products together
RECORDED_ROWS = (1, 2, 4, 8)  # of recordings: buffers for so many stay
_UNASKED_BYTES = 32 << 20  # of weights that a token passes between two looks at `cancelled`: one or two milliseconds
_UNASKED_OF_RANKS = 256 << 20  # where ranks wait for each other, each look costs all of them


class Layers:
    """`routed` is told of every choice of experts: layer, (T, used) ids."""

    def __init__(
        self,
        spec: ModelSpec,
        store: WeightStore,
        kernels: Kernels,
        ropes: dict[Rotation, RopeTable],
        routed: Callable[[int, I32], None],
        ranks: Ranks | None = None,
    ) -> None:
        self.spec = spec
        self.plan: tuple[LayerPlan, ...] = plan_of(spec)
        self._layouts: frozenset[Layout[Any]] = frozenset(each for layer in self.plan for each in layer.layouts)
        self._scratch: dict[tuple[int, int], Scratch] = {}  # by rows, and whose of two halves they are
        self._ranks = ranks
        found = FoundExperts(spec.n_layers, store, routed)
        self.tools = Tools(kernels, store, spec.n_layers, ropes, self.scratch, routed, found, ranks)

    # -- all of a layer ------------------------------------------------------------------------------------------

    def wave(
        self,
        x: F32,
        places: Places,
        cancelled: Cancel,
        inputs: F32 | None = None,
        first: int = 0,
        pause: Callable[[], bool] = never,
    ) -> int:
        """All layers from `first` on over x (T, width), in place, each over all rows before the next: its weights are
        needed once. Returns how many x has passed then: all, or, after one at least, those before `pause()` was true.
        inputs: what layers are fed beside (`LayerInputs`), (layers, T, width)."""
        if self._ranks is not None and are_halved(self.spec, len(x), self._ranks.size):
            self._in_halves(self._ranks, x, places, cancelled)
            return self.spec.n_layers
        cut, chunks = at_once(cancelled, len(x)), places.cut(CHUNK)
        for layer in range(first, self.spec.n_layers):
            if layer > first and pause():
                return layer
            check(cancelled)
            self._layer(layer, x, chunks, cut, cancelled, inputs)
        return self.spec.n_layers

    def _in_halves(self, ranks: Ranks, x: F32, places: Places, cancelled: Cancel) -> None:
        """All layers over x by turns (`halves.py`). Where weights are always there a half goes on to the next layer by
        itself; else both need a layer's before the next ones are read."""
        parts, turns = [(part, places.part(part)) for part in pieces(len(x))], Turns()
        cuts = [at_once(cancelled, piece.rows) for _, piece in parts[:2]]  # `dense` has others for further pieces
        tools = [
            replace(self.tools, ranks=HalfSums(ranks, turns, half), scratch=partial(self.scratch, half=half))
            for half in range(2)
        ]

        def through(layer: int, weights: LayerWeights, half: int) -> None:
            self.dense(Here(tools[half], layer, weights, cuts[half]), x, parts[half::2], cancelled)

        def all_layers(half: int) -> None:
            for layer in range(self.spec.n_layers):
                check(cancelled)
                with self.tools.store.layer(layer, cancelled) as weights:
                    through(layer, weights, half)

        def compute() -> float:
            if self.tools.store.fixed:
                both(turns, all_layers)
                return turns.idle_s
            for layer in range(self.spec.n_layers):
                check(cancelled)
                with self.tools.store.layer(layer, cancelled) as weights:
                    both(turns, partial(through, layer, weights))
            return turns.idle_s

        ranks.overlapped(compute)

    def record(
        self,
        x: F32,
        places: Places,
        cut: Cut,
        began: Callable[[int], None] = lambda layer: None,
        inputs: F32 | None = None,
    ) -> None:
        """The same for the few rows x, for a recorder: `cut` is called where Python must decide (experts, neurons,
        whether to go on), `began` with every layer. Addresses are remembered beyond the leases: `store.fixed`."""
        unasked_bytes, chunks = 0, places.cut(CHUNK)
        most_bytes = _UNASKED_BYTES if self.tools.ranks is None else _UNASKED_OF_RANKS
        for layer in range(self.spec.n_layers):
            began(layer)
            unasked_bytes += self._bytes(layer)
            if unasked_bytes > most_bytes:
                cut(_go_on)
                unasked_bytes = 0
            self._layer(layer, x, chunks, cut, never, inputs)

    def _layer(
        self, layer: int, x: F32, chunks: Chunks, cut: Cut, cancelled: Cancel, inputs: F32 | None = None
    ) -> None:
        plan = self.plan[layer]
        with self.tools.store.layer(layer, cancelled) as weights:
            here = Here(self.tools, layer, weights, cut)
            mixture = plan.mixture
            if mixture is None:
                self.dense(here, x, chunks, cancelled, inputs)
            else:
                choices = self.choices(mixture, len(x))
                mixture.begin(here, x, choices)
                self.dense(here, x, chunks, cancelled)
                mixture.forward(here, x, choices)
            if plan.closing is not None:
                for part, places in chunks:
                    fed = None if inputs is None else inputs[layer, part]
                    plan.closing.forward(here, x[part], fed, self.scratch(places.rows))

    # -- its parts, for prompt backends --------------------------------------------------------------------------

    def here(self, layer: int, weights: LayerWeights, cancelled: Cancel, rows: int, watch: Watch | None = None) -> Here:
        """For a block that is computed now, over so many rows."""
        return Here(self.tools, layer, weights, at_once(cancelled, rows), watch)

    def dense(self, here: Here, x: F32, chunks: Chunks, cancelled: Cancel, inputs: F32 | None = None) -> None:
        """What is computed chunk by chunk: all of a layer but its experts and how it ends. inputs: as of `wave`, for
        layers that compute with one of several streams."""
        plan = self.plan[here.layer]
        for index, (part, places) in enumerate(chunks):
            if index:
                check(cancelled)
            s = here.tools.scratch(places.rows)
            if len(chunks) > 1:  # nothing is recorded then
                here = here.within(cancelled, places.rows)
            mine = x[part] if plan.streams is None else plan.streams.open(here, x[part], s)
            plan.mixer.forward(here, mine, places, s)
            if not isinstance(plan.feed_forward, Mixture):
                plan.feed_forward.forward(here, mine, s)
            if plan.streams is not None:
                assert inputs is not None  # reading.py
                plan.streams.close(here, x[part], inputs[here.layer, part], s)

    def choices(self, mixture: Mixture, rows: int) -> Choices:
        """Buffers for what a mixture chooses: kept for numbers of rows that may be recorded; of a wave as long as it is
        used."""
        if rows in RECORDED_ROWS:
            return self.scratch(rows).of(mixture.layout)
        return mixture.layout.make(rows, lambda cols: np.empty((rows, cols), np.float32))

    # -- buffers -------------------------------------------------------------------------------------------------

    def scratch(self, rows: int, half: int = 0) -> Scratch:
        """Buffers for so many rows; of two halves that take turns each has its own."""
        found = self._scratch.get((rows, half))
        if found is None:
            if sum(known not in RECORDED_ROWS for known, _ in self._scratch) > 2:  # halves or chunks, and a rest
                self.drop_scratch()
            found = self._scratch[rows, half] = Scratch(self.spec.d_model, rows, self._layouts)
        return found

    def drop_scratch(self) -> None:
        """Where memory is short: those of many rows. Of few they stay, since they may be recorded."""
        self._scratch = {key: each for key, each in self._scratch.items() if key[0] in RECORDED_ROWS}

    def _bytes(self, layer: int) -> int:
        """That a token passes without Python."""
        places, mixture = self.tools.store.places(layer), self.plan[layer].mixture
        experts = 0 if places is None or mixture is None else mixture.used
        with self.tools.store.layer(layer) as weights:
            dense = sum(matrix.n_bytes for matrix in weights.matrices.values())
        return dense + (experts * sum(matrix.n_bytes for matrix in places.first.matrices) if places else 0)


def _go_on(cancelled: Cancel, rows: int) -> None:
    """Whether to, between two recorded pieces."""
    check(cancelled)
