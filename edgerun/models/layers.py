"""All layers of a model, run by their plans: over a wave of a prompt, or over a token whose launches are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgerun.events import never
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.models.blocks.base import Cancel, Cut, Decide, Here, Tools, Watch, check
from edgerun.models.blocks.mixture import Choices, Mixture
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.places import Places
from edgerun.models.plan import LayerPlan, plan_of
from edgerun.models.rope import RopeTable
from edgerun.models.scratch import Layout, Scratch
from edgerun.models.spec import ModelSpec, Rotation
from edgerun.weights import LayerWeights, WeightStore

_UNASKED_BYTES = 32 << 20  # of weights that a token passes between two looks at `cancelled`: one or two milliseconds


class Layers:
    """`routed` is told of every choice of experts: layer, (T, used) ids."""

    def __init__(
        self,
        spec: ModelSpec,
        store: WeightStore,
        kernels: Kernels,
        ropes: dict[Rotation, RopeTable],
        routed: Callable[[int, I32], None],
    ) -> None:
        self.spec = spec
        self.plan: tuple[LayerPlan, ...] = plan_of(spec)
        self._layouts: frozenset[Layout[Any]] = frozenset(each for layer in self.plan for each in layer.layouts)
        self._scratch: dict[int, Scratch] = {}
        self.tools = Tools(kernels, store, spec.n_layers, ropes, self.scratch, routed)

    # -- all of a layer ------------------------------------------------------------------------------------------

    def wave(self, x: F32, places: Places, cancelled: Cancel) -> None:
        """All layers over x (T, d), each over all rows before the next: its weights are needed once."""
        cut = _at_once(cancelled)
        for layer in range(self.spec.n_layers):
            check(cancelled)
            self._layer(layer, x, places, cut, cancelled)

    def record(self, x: F32, places: Places, cut: Cut) -> None:
        """The same for the few rows x, for a recorder: `cut` is called where Python must decide (experts, neurons,
        whether to go on). Addresses are remembered beyond the leases: `store.fixed`."""
        unasked_bytes = 0
        for layer in range(self.spec.n_layers):
            unasked_bytes += self._bytes(layer)
            if unasked_bytes > _UNASKED_BYTES:
                cut(check)
                unasked_bytes = 0
            self._layer(layer, x, places, cut, never)

    def _layer(self, layer: int, x: F32, places: Places, cut: Cut, cancelled: Cancel) -> None:
        plan = self.plan[layer]
        with self.tools.store.layer(layer, cancelled) as weights:
            here = Here(self.tools, layer, weights, cut)
            mixture = plan.mixture
            if mixture is None:
                self.dense(here, x, places, cancelled)
                return
            choices = self.choices(mixture, len(x))
            mixture.begin(here, x, choices)
            self.dense(here, x, places, cancelled)
            mixture.forward(here, x, choices)

    # -- its parts, for prompt backends --------------------------------------------------------------------------

    def here(self, layer: int, weights: LayerWeights, cancelled: Cancel, watch: Watch | None = None) -> Here:
        """For a block that is computed now."""
        return Here(self.tools, layer, weights, _at_once(cancelled), watch)

    def dense(self, here: Here, x: F32, places: Places, cancelled: Cancel) -> None:
        """What is computed chunk by chunk: all of a layer but its experts."""
        plan = self.plan[here.layer]
        for index, part in enumerate(chunks(len(x), CHUNK)):
            if index:
                check(cancelled)
            s = self.scratch(part.stop - part.start)
            plan.mixer.forward(here, x[part], places.part(part), s)
            if not isinstance(plan.feed_forward, Mixture):
                plan.feed_forward.forward(here, x[part], s)

    def choices(self, mixture: Mixture, rows: int) -> Choices:
        """Buffers for what a mixture chooses: kept for one row, since it may be recorded; of a wave as long as it is
        used."""
        if rows == 1:
            return self.scratch(rows).of(mixture.layout)
        return mixture.layout.make(rows, lambda cols: np.empty((rows, cols), np.float32))

    # -- buffers -------------------------------------------------------------------------------------------------

    def scratch(self, rows: int) -> Scratch:
        """Buffers for so many rows."""
        found = self._scratch.get(rows)
        if found is None:
            if len(self._scratch) > 2:  # a row alone; a wave has whole chunks and a rest
                self.drop_scratch()
            found = self._scratch[rows] = Scratch(self.spec.d_model, rows, self._layouts)
        return found

    def drop_scratch(self) -> None:
        """Where memory is short: those of several rows. Of a row alone they stay, since they may be recorded."""
        self._scratch = {rows: each for rows, each in self._scratch.items() if rows == 1}

    def _bytes(self, layer: int) -> int:
        with self.tools.store.layer(layer) as weights:
            return sum(matrix.n_bytes for matrix in weights.matrices.values())


def _at_once(cancelled: Cancel) -> Cut:
    def cut(decide: Decide) -> None:
        decide(cancelled)

    return cut
