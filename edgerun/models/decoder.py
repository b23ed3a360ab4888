"""The one decoder: tokens in, logits out, for every declared family.

Its layers are plans of blocks (`plan.py`), computed by `layers.py` with the operations of `kernels`, the weights of a
`WeightStore` and the keys and values of `KvSequence`s. One token, a chunk of a prompt, eight users' tokens: all of
it is one call (`batch.py`). T rows at a time, d = d_model; all activations are f32.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.events import Span, SpanSink, never
from edgerun.kernels.compile import sources_digest
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.kv import KvLedger, KvOptions, KvSequence, PagePool
from edgerun.models.batch import Batch, Stretch, Want
from edgerun.models.blocks.base import Cancel, check
from edgerun.models.chunks import CHUNK
from edgerun.models.holdings import kv_groups, states_of
from edgerun.models.layer_inputs import LayerInputs
from edgerun.models.passes import Passes
from edgerun.models.places import Pass, Places, Run, Wave
from edgerun.models.prompt import PromptBackend
from edgerun.models.ranks import HeadRanks
from edgerun.models.recent_rows import RecentRows
from edgerun.models.spec import ModelSpec
from edgerun.models.streams import Streams
from edgerun.weights import WeightStore

_RECENT_BYTES = 1 << 20  # of embeddings that are kept


class Throttle(Protocol):
    """Somebody who wants less to be computed than could be: for the sake of a battery, a power or a temperature."""

    def rest(self, worked_s: float, cancelled: Callable[[], bool]) -> None:
        """After a pass that took so long: return when the next one may begin."""
        ...

    def describe(self) -> str:
        """For people: what is kept to, and what it costs."""
        ...


class Decoder:
    """`spec` says what to compute, `store` has the weights, `kernels` computes. One call at a time.

    context: tokens that a sequence may have (default: what the model was trained for); some models rotate by it.
    kv_ledger: what the pages of all its sequences are counted by.
    kv: how keys and values are kept.
    ranks: those who have the rest of every layer, where `spec` is a shard's.
    """

    throttle: Throttle | None = None

    def __init__(
        self,
        spec: ModelSpec,
        store: WeightStore,
        kernels: Kernels,
        *,
        context: int | None = None,
        kv_ledger: KvLedger | None = None,
        kv: KvOptions | None = None,
        ranks: HeadRanks | None = None,
    ) -> None:
        self.pages = PagePool(kv_groups(spec, kv), kv_ledger, states_of(spec))
        self.on_routing: Callable[[int, I32], None] | None = None  # told each layer's choices, (T, k) ids
        self.prompt_backend: PromptBackend | None = None  # computes a prompt's dense products, if not the kernels
        self._watcher: SpanSink | None = None
        self._context = context or spec.context_length
        self.use(spec, store, kernels, ranks)

    def use(self, spec: ModelSpec, store: WeightStore, kernels: Kernels, ranks: HeadRanks | None = None) -> None:
        """Compute with these from now on: as in the beginning, and where a group divides the model anew. The pages must
        be laid out for the spec by then (`PagePool.lay_out`)."""
        self.spec = spec
        self.store = store
        self.kernels = kernels
        self._ranks = ranks
        self.passes = Passes(spec, store, kernels, context=self._context, routed=self._tell_routing, ranks=ranks)
        if self._watcher is not None:
            self.watch(self._watcher)
        self.wave_tokens = store.wave_tokens  # of a prompt, that pass a layer together; 0: as many as is usual
        self._inputs = LayerInputs(spec, store, kernels) if spec.per_layer_width else None
        self._streams = Streams(spec, store, kernels) if spec.streams > 1 else None
        self._embedded = RecentRows(
            lambda token: self._embed(np.array([token], np.int32))[0], spec.width, _RECENT_BYTES
        )

    @property
    def arithmetic(self) -> str:
        """What keys, values and states, and their bits, depend on beside the weights and the ids."""
        backend = "" if self.prompt_backend is None else f" {self.prompt_backend.name}"
        lie = repr(
            (self.pages.groups, sorted(states_of(self.spec).layouts.items()))
        )  # how they lie in pages and blocks
        kept = hashlib.sha256(lie.encode()).hexdigest()[:16]
        return " ".join([self.kernels.name, sources_digest(), kept, *self.passes.rope_keys]) + backend

    def new_cache(self, capacity: int) -> KvSequence:
        """An empty sequence of up to `capacity` tokens."""
        return KvSequence(self.pages, capacity)

    def before_prompt(self) -> None:
        """Called before somebody's prompt begins, between two steps. All sequences may be empty afterwards."""

    def step(self, batch: Batch, *, cancelled: Callable[[], bool] | None = None) -> list[F32 | None]:
        """Append every stretch's ids to its sequence, all in one pass over the weights; returns what each wanted: None,
        logits (1 or n, vocab), or final normed states (n, d), new arrays. What a row computes does not depend on its
        company.

        Raises ContextLengthError when they do not fit, UsageError for ids outside the vocabulary, Cancelled when
        `cancelled()` became true between two layers. After any exception the sequences are as they were before.
        """
        throttle, watcher, cancelled = self.throttle, self._watcher, cancelled or never
        if throttle is None and watcher is None:
            return self._step(batch, cancelled)
        began = time.perf_counter()
        out = self._step(batch, cancelled)
        ended = time.perf_counter()
        if watcher is not None:
            watcher(Span("step", self._name_of(batch), began, ended))
        if throttle is not None:
            throttle.rest(ended - began, cancelled)
            if watcher is not None:
                watcher(Span("resting", "to keep to a limit", ended, time.perf_counter()))
        return out

    def watch(self, watcher: SpanSink | None) -> None:
        """Tell of every step, and have the store, the prompt backend and the other ranks tell what they do. None: no
        longer."""
        self._watcher = watcher
        for each in (self.store, self.prompt_backend, self._ranks):
            if each is not None:
                each.watch(watcher)

    def _name_of(self, batch: Batch) -> str:
        """What a step is called in a trace: rows of one sequence each are tokens, few ones a draft's."""
        stretches = batch.stretches
        if len(stretches) == 1 and len(stretches[0].ids) == 1:
            return "token"
        rows = sum(len(each.ids) for each in stretches)
        if rows == len(stretches):
            return f"{rows} tokens"
        return f"{rows} tokens" if rows <= self.passes.most_few else f"prompt, {rows} tokens"

    def _step(self, batch: Batch, cancelled: Callable[[], bool]) -> list[F32 | None]:
        tokens = batch.tokens(self.spec.vocab_size)
        check(cancelled)
        self.store.begin()
        lengths = [each.sequence.length for each in batch.stretches]
        try:
            for each in batch.stretches:
                each.sequence.reserve(len(each.ids))
            if len(tokens) <= self.passes.most_few and not self._on_backend(batch):
                return self._few_rows(batch, tokens, cancelled)
            return self._many_rows(batch, tokens, cancelled)
        except BaseException:
            for each, length in zip(batch.stretches, lengths, strict=True):
                if each.sequence.length > length:
                    each.sequence.truncate(length)
            raise

    def forward(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: KvSequence,
        *,
        logits: Literal["last", "all", "none"] = "last",
        cancelled: Callable[[], bool] | None = None,
    ) -> F32 | None:
        """`step` of one sequence."""
        return self.step(Batch((Stretch(cache, ids, logits),)), cancelled=cancelled)[0]

    def hidden(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: KvSequence,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> F32:
        """`step` of one sequence; its final normed states (n, d)."""
        (out,) = self.step(Batch((Stretch(cache, ids, "hidden"),)), cancelled=cancelled)
        assert out is not None  # it was wanted
        return out

    # -- a few rows ---------------------------------------------------------------------------------------------

    def _few_rows(self, batch: Batch, tokens: list[int], cancelled: Cancel) -> list[F32 | None]:
        """By replaying recorded launches (`replay.DecodeReplay`)."""
        x = self.passes.few.x[: len(tokens)]
        for row, token in enumerate(tokens):
            x[row] = self._embedded.row(token)
        runs, wanted = [], []
        low = 0
        for each in batch.stretches:
            run = Run(each.sequence, each.sequence.length, len(each.ids))
            runs.append(run)
            wanted += _wanted_rows(each.want, low, run.rows)
            low += run.rows
        fed = None if self._inputs is None else self._inputs.of(np.array(tokens, np.int32), x)
        logits = self._pass(Pass(tuple(runs), wanted, few=True, inputs=fed), x, cancelled)
        out: list[F32 | None] = []
        low = given = 0
        for each, run in zip(batch.stretches, runs, strict=True):
            each.sequence.advance(run.rows)
            n = len(_wanted_rows(each.want, low, run.rows))
            if each.want == "hidden":
                out.append(self.passes.normed(x[low : low + run.rows]))
            else:
                out.append(logits[given : given + n].copy() if n else None)
            given += n
            low += run.rows
        return out

    # -- many rows ----------------------------------------------------------------------------------------------

    def _many_rows(self, batch: Batch, tokens: list[int], cancelled: Cancel) -> list[F32 | None]:
        """Wave after wave. On a prompt backend, whose arithmetic is another, every stretch goes by itself."""
        backend = self.prompt_backend if self._on_backend(batch) else None
        together = [[each] for each in batch.stretches] if backend is not None else [list(batch.stretches)]
        out: list[F32 | None] = []
        low = 0
        try:
            for stretches in together:
                rows = sum(len(each.ids) for each in stretches)
                out += self._waves(stretches, tokens[low : low + rows], backend, cancelled)
                low += rows
        finally:
            if self.store.wave_tokens:  # memory is short: it is needed for weights now
                self.passes.layers.drop_scratch()
        return out

    def _waves(
        self,
        stretches: Sequence[Stretch],
        tokens: list[int],
        backend: PromptBackend | None,
        cancelled: Cancel,
    ) -> list[F32 | None]:
        """All rows of some stretches, as many at a time as a wave has."""
        places = Places(Run(each.sequence, each.sequence.length, len(each.ids)) for each in stretches)
        found: list[list[F32]] = [[] for _ in stretches]  # of each stretch, what its rows gave
        left = [len(each.ids) for each in stretches]  # rows that are still to come
        for part, some in places.cut(self.wave_tokens or (backend.wave_tokens if backend else CHUNK)):
            indexes = [next(i for i, s in enumerate(stretches) if s.sequence is run.sequence) for run in some.runs]
            wants: list[Want] = []
            for index, run in zip(indexes, some.runs, strict=True):
                left[index] -= run.rows
                want = stretches[index].want
                wants.append("none" if want == "last" and left[index] else want)
            wave = self._wave(tokens[part], some, wants)
            logits = self._pass(wave.task, wave.x, cancelled, backend)
            for index, rows in zip(indexes, self._results(wave, logits), strict=True):
                if rows is not None:
                    found[index].append(rows)
        return [None if not each else each[0] if len(each) == 1 else np.concatenate(each) for each in found]

    def _wave(self, tokens: list[int], places: Places, wants: Sequence[Want]) -> Wave:
        """What enters the first layer. wants: of each run."""
        ids = np.array(tokens, np.int32)
        x = self._embed(ids)
        fed = None if self._inputs is None else self._inputs.of(ids, x)
        wanted: list[int] = []
        low = 0
        for run, want in zip(places.runs, wants, strict=True):
            wanted += _wanted_rows(want, low, run.rows)
            low += run.rows
        return Wave(tuple(wants), Pass(places.runs, wanted, few=False, inputs=fed), x)

    def _results(self, wave: Wave, logits: F32) -> Iterator[F32 | None]:
        """What each run wanted, of rows that have passed all layers; its sequence has them from now on."""
        low = given = 0
        for run, want in zip(wave.task.runs, wave.wants, strict=True):
            run.sequence.advance(run.rows)
            n = len(_wanted_rows(want, low, run.rows))
            if want == "hidden":
                yield self.passes.normed(wave.x[low : low + run.rows])
            else:
                yield logits[given : given + n] if n else None
            given += n
            low += run.rows

    # -- a wave that other steps come between ---------------------------------------------------------------------

    @property
    def can_pause(self) -> bool:
        """Whether rows of prompts can pass some layers now and others later (`start`): where all weights and what is
        computed with lie here in memory."""
        is_alone = self._ranks is None and self.prompt_backend is None
        return is_alone and not self.wave_tokens and self.passes.most_few > 0 and self.pages.states is None

    def start(self, batch: Batch) -> Wave:
        """A step whose layers `go_on` computes, with other steps of other sequences in between. What pages are missing
        is taken now. Raises as `step` does, and UsageError for more than CHUNK rows or where it cannot be."""
        if not self.can_pause or batch.rows > CHUNK:
            raise UsageError(f"{batch.rows} rows cannot pass some layers now and others later")
        tokens = batch.tokens(self.spec.vocab_size)
        for each in batch.stretches:
            each.sequence.reserve(len(each.ids))
        places = Places(Run(each.sequence, each.sequence.length, len(each.ids)) for each in batch.stretches)
        return self._wave(tokens, places, [each.want for each in batch.stretches])

    def go_on(
        self, wave: Wave, pause: Callable[[], bool], *, cancelled: Callable[[], bool] | None = None
    ) -> list[F32 | None] | None:
        """One layer of a wave or more, until `pause()`; None: others are left. Then what each stretch wanted, as of
        `step`. Nothing else may have changed its sequences since `start`. Raises Cancelled; after any exception they
        are as they were, and the wave is of no use."""
        began, first, cancelled = time.perf_counter(), wave.layers, cancelled or never
        lengths = [run.sequence.length for run in wave.task.runs]
        try:
            out = self._go_on(wave, pause, cancelled)
        except BaseException:
            for run, length in zip(wave.task.runs, lengths, strict=True):
                if run.sequence.length > length:
                    run.sequence.truncate(length)
            raise
        ended = time.perf_counter()
        if self._watcher is not None:
            name = f"prompt, {wave.task.rows} tokens, layers {first + 1} to {wave.layers}"
            self._watcher(Span("step", name, began, ended))
        if self.throttle is not None:
            self.throttle.rest(ended - began, cancelled)
        return out

    def _go_on(self, wave: Wave, pause: Callable[[], bool], cancelled: Cancel) -> list[F32 | None] | None:
        check(cancelled)
        task, x = wave.task, wave.x
        places = Places(task.runs)
        wave.layers = self.passes.layers.wave(x, places, cancelled, task.inputs, wave.layers, pause)
        if wave.layers < self.spec.n_layers:
            return None
        return list(self._results(wave, self._capped(self.passes.logits(x[task.wanted]))))

    # ------------------------------------------------------------------------------------------------------------

    def _pass(self, task: Pass, x: F32, cancelled: Cancel, backend: PromptBackend | None = None) -> F32:
        """The logits that are wanted, of all ranks where there are several; x (T, d) goes through all layers."""
        if self._ranks is None:
            return self._capped(self.passes.run(task, x, cancelled, backend))
        return self._capped(self._ranks.run(task, x, lambda: self.passes.run(task, x, cancelled)))

    def _on_backend(self, batch: Batch) -> bool:
        """Whether some stretch is a prompt for the backend: of one token none is."""
        backend = self.prompt_backend
        return backend is not None and any(len(s.ids) >= max(2, backend.least_tokens) for s in batch.stretches)

    def _embed(self, tokens: NDArray[np.int32]) -> F32:
        """What enters the first layer, (T, width)."""
        x = self.store.embedding(tokens)
        if self.spec.family.normed_embedding:
            self.kernels.rms_norm(x, np.ones(self.spec.d_model, np.float32), self.spec.norm_eps, x)
        if self.spec.embedding_scale != 1.0:
            self.kernels.scale(x, self.spec.embedding_scale)
        return x if self._streams is None else self._streams.open(x)

    def _capped(self, logits: F32) -> F32:
        """cap * tanh(logits / cap), in place, where the model has a cap."""
        cap = self.spec.logit_softcap
        if cap:
            np.multiply(np.tanh(logits / np.float32(cap)), np.float32(cap), out=logits)
        return logits

    def _tell_routing(self, layer: int, ids: I32) -> None:
        if self.on_routing is not None:
            self.on_routing(layer, ids)


def _wanted_rows(want: Want, first: int, rows: int) -> list[int]:
    """Of a stretch's rows, counted from `first`, those whose logits are wanted."""
    if want == "all":
        return list(range(first, first + rows))
    return [first + rows - 1] if want == "last" else []
