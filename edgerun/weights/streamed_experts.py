"""A mixture of experts larger than memory: dense weights resident, experts in a cache filled from flash."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.device.forks import call_after_fork
from edgerun.events import EventSink, SpanSink, ignore, never
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.kernels.recording import ExpertPlaces
from edgerun.weights.catalog import LAYER_EMBEDDING, make_catalog
from edgerun.weights.eviction import DecayedFrequency, Eviction
from edgerun.weights.expert_cache import ExpertCache
from edgerun.weights.last_run import LEAST_BYTES, LEAST_TOKENS, Routing, RoutingNotes
from edgerun.weights.lasting import LastingWeights
from edgerun.weights.packing import open_reader
from edgerun.weights.predictor import MOST_AHEAD, ROUTERS, SOURCES, ExpertPredictor
from edgerun.weights.resident import HasLayers
from edgerun.weights.store import ExpertLease
from edgerun.weights.tensor_reader import DenseLoader


class StreamedExpertStore(LastingWeights):
    """`WeightStore` over a GGUF file whose experts do not all fit.

    slots: experts that are kept; spare_bytes: memory in which more are kept as long as `others_hold` less of it.
    wave_tokens: of a prompt that pass a layer together. scores: an earlier run's `scores`, to begin with the experts
    that were hot then. predict: whether hints begin reads. reader_threads: reads in flight. Output does not depend on
    any of these. Raises ReadError when the file cannot be read.
    """

    mode: Literal["experts"] = "experts"
    fixed = True

    def __init__(
        self,
        gguf: GgufFile,
        spec: HasLayers,
        kernels: Kernels,
        *,
        slots: int,
        wave_tokens: int,
        eviction: Eviction | None = None,
        scores: F32 | None = None,
        predict: bool = True,
        reader_threads: int = 3,
        spare_bytes: int = 0,
        direct: bool = True,
        events: EventSink = ignore,
    ) -> None:
        self.lookahead = MOST_AHEAD if predict else 0
        self.wave_tokens = wave_tokens
        self._catalog = catalog = make_catalog(spec.tensors, spec.n_layers)
        self._eviction = eviction or DecayedFrequency(spec.n_layers, catalog.n_experts, scores)
        kernels.prepare(catalog.types())
        with contextlib.ExitStack() as stack:
            self._reader = open_reader(gguf, catalog, kernels, threads=reader_threads, direct=direct, events=events)
            self.flash, self.packed = self._reader.flash, self._reader.packed
            stack.callback(self.flash.close)
            loader = DenseLoader(self._reader, catalog)
            self._outside, self._head = loader.outside(), loader.head()
            self._outer = loader.outer()
            self._layers = [loader.layer(layer) for layer in catalog.layers]
            loader.run(events)
            self._predictor: ExpertPredictor | None = None
            self._notes = RoutingNotes(len(catalog.layers))
            self._loaded = self._filled = replace(self.flash.stats)
            self.cache = ExpertCache(catalog, self._reader, self._eviction, slots, spare_bytes)
            self._places = [self.cache.places(i) if layer.experts else None for i, layer in enumerate(catalog.layers)]
            mixtures = [i for i, each in enumerate(self._places) if each is not None]
            self._later = [[each for each in mixtures if each > i][:MOST_AHEAD] for i in range(len(self._places))]
            if scores is not None:
                order = np.argsort(-scores.reshape(-1), kind="stable")
                hot = order[: min(self.cache.slots, int(np.count_nonzero(scores)))]
                self.cache.fill(sorted(hot.tolist()))
            self._close = stack.pop_all()
        call_after_fork(self)

    @property
    def scores(self) -> F32 | None:
        """How hot each expert is, (layers, experts) f32; None when the policy does not count that."""
        return getattr(self._eviction, "scores", None)

    def seen(self) -> tuple[float, Routing] | None:
        """What of this run plans of others are made of: bytes/s at which the disk gave what was missing, and whom its
        last tokens chose; None where that is too little to tell something."""
        stats, routing = self.flash.stats, self._notes.routing()
        for begun in (self._filled, self._loaded):  # while the cache fills, memory that is new makes reading slower
            n_bytes, busy_s = stats.n_bytes - begun.n_bytes, stats.busy_s - begun.busy_s
            if len(routing) >= LEAST_TOKENS and n_bytes >= LEAST_BYTES and busy_s > 0:
                return n_bytes / busy_s, routing
        return None

    def embedding(self, ids: NDArray[np.int32]) -> F32:
        if not self.cache.stats.evictions:
            self._filled = replace(self.flash.stats)
        if self._predictor is not None:
            for layer, expected in self._predictor.begin(ids):
                self.cache.expect(layer, expected.tolist())
            if len(ids) == 1:
                self.cache.stop_for(self._predictor.wanted(self._later, self.cache.hints_worth()))
        return self._reader.rows(self._catalog.embedding, ids)

    def layer_embedding(self, ids: NDArray[np.int32]) -> F32:
        return self._reader.rows(self._catalog.further[LAYER_EMBEDDING], ids)

    def begin(self) -> None:
        self.cache.begin()

    def after_fork(self) -> None:
        """See `device.forks`."""
        self.cache.after_fork()

    def experts(
        self,
        layer: int,
        ids: I32,
        uses: I32 | None = None,
        tokens: int = 1,
        cancelled: Callable[[], bool] = never,
    ) -> ExpertLease:
        uses = np.ones(len(ids), np.int32) if uses is None else uses
        return self.cache.lease(layer, ids, uses, tokens, cancelled)

    def routed(self, layer: int, ids: I32) -> None:
        if self.lookahead and self._predictor is None:
            layers, vocab = len(self._catalog.layers), self._catalog.embedding.shape[0]
            self._predictor = ExpertPredictor(layers, self._catalog.n_experts, vocab)
        if self._predictor is not None:
            self._predictor.chosen(layer, ids)
        self._notes.note(layer, ids)

    def places(self, layer: int) -> ExpertPlaces | None:
        return self._places[layer]

    def passed(self, layer: int, lists: I32) -> None:
        self.cache.passed(layer, lists[0])
        self.routed(layer, lists[:1])
        if self._predictor is not None:
            for distance, (each, ids) in enumerate(zip(self._later[layer], lists[1:], strict=False), 1):
                self._predictor.hear(each, ids, ROUTERS[min(distance, len(ROUTERS)) - 1])

    def expect(self, layer: int, ids: I32, distance: int = 1) -> None:
        if self._predictor is None or distance == 0:
            self.cache.expect(layer, ids.tolist())
            return
        self._predictor.hear(layer, ids, ROUTERS[min(distance, len(ROUTERS)) - 1])
        best = self._predictor.best(layer)
        if best is not None:
            self.cache.expect(layer, best.tolist(), is_far=distance > 1)

    def prediction_accuracy(self) -> dict[str, list[float | None]]:
        """Of each source, layer by layer: the share of the experts chosen lately that it had named; None: it was never
        asked."""
        if self._predictor is None:
            return {}
        rows = zip(SOURCES, self._predictor.accuracy.tolist(), self._predictor.judged.tolist(), strict=True)
        return {
            source: [round(each, 3) if n else None for each, n in zip(shares, counts, strict=True)]
            for source, shares, counts in rows
        }

    def lend(self, n_bytes: int, cancelled: Callable[[], bool] = never) -> AbstractContextManager[None]:
        return self.cache.lend(n_bytes, cancelled)

    def others_hold(self, n_bytes: int) -> None:
        self.cache.others_hold(n_bytes)

    def watch(self, watcher: SpanSink | None) -> None:
        self.flash.watch(watcher)

    def statistics(self) -> dict[str, float]:
        """Counts since the start: see `CacheStats` and `ReadStats`."""
        return {**asdict(self.cache.stats), **{f"read_{k}": v for k, v in asdict(self.flash.stats).items()}}

    def close(self) -> None:
        self._close.close()
