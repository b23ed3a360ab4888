"""The one decoder: tokens in, logits out, for every declared family.

Its layers are plans of blocks (`plan.py`), computed by `layers.py` with the operations of `kernels`, the weights of a
`WeightStore` and the keys and values of `KvSequence`s. One token, a chunk of a prompt, eight users' tokens: all of
it is one call (`batch.py`). T rows at a time, d = d_model; all activations are f32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError
from edgerun.events import never
from edgerun.kernels.compile import sources_digest
from edgerun.kernels.interface import F32, I32, Kernels, Recording
from edgerun.kv import KvLedger, KvOptions, KvSequence, PagePool
from edgerun.models.batch import Batch, Stretch, Want
from edgerun.models.blocks.base import Cancel, check
from edgerun.models.chunks import CHUNK
from edgerun.models.footprint import activation_bytes
from edgerun.models.holdings import kv_groups, states_of
from edgerun.models.layers import RECORDED_ROWS, Layers
from edgerun.models.places import Places, Run
from edgerun.models.prompt import PromptBackend, PromptWalk
from edgerun.models.recent_rows import RecentRows
from edgerun.models.replay import DecodeReplay
from edgerun.models.rope import RopeTable, frequencies
from edgerun.models.spec import ModelSpec, Rotation
from edgerun.weights import WeightStore

_ALL_LOGITS = 64  # rows of logits made at a time: a vocabulary can be wide
_RECENT_BYTES = 1 << 20  # of embeddings that are kept


class _FewRows:
    """Buffers that recordings of up to `rows` rows share: x (rows, d) what enters the first layer and leaves the last,
    the same normed, its logits (rows, vocab)."""

    def __init__(self, rows: int, spec: ModelSpec) -> None:
        self.x, self.normed = (np.empty((rows, spec.d_model), np.float32) for _ in range(2))
        self.logits = np.empty((rows, spec.vocab_size), np.float32)


class Decoder:
    """`spec` says what to compute, `store` has the weights, `kernels` computes. One call at a time.

    context: tokens that a sequence may have (default: what the model was trained for); some models rotate by it.
    kv_ledger: what the pages of all its sequences are counted by.
    kv: how keys and values are kept.
    """

    def __init__(
        self,
        spec: ModelSpec,
        store: WeightStore,
        kernels: Kernels,
        *,
        context: int | None = None,
        kv_ledger: KvLedger | None = None,
        kv: KvOptions | None = None,
    ) -> None:
        self.spec = spec
        self.store = store
        self.kernels = kernels
        self.pages = PagePool(kv_groups(spec, kv), kv_ledger, states_of(spec))
        output_norm = store.vector(spec.family.output_norm)
        assert output_norm is not None  # shapes.check_tensors
        self._output_norm = output_norm
        self.on_routing: Callable[[int, I32], None] | None = None  # told each layer's choices, (T, k) ids
        self.prompt_backend: PromptBackend | None = None  # computes a prompt's dense products, if not the kernels
        ropes = self._ropes(context or spec.context_length)
        self._rope_keys = sorted(rope.key for rope in ropes.values())
        self._layers = Layers(spec, store, kernels, ropes, self._tell_routing)
        self._embedded = RecentRows(
            lambda token: self._embed(np.array([token], np.int32))[0], spec.d_model, _RECENT_BYTES
        )
        self._few = _FewRows(max(RECORDED_ROWS), spec)
        self._recording = kernels.recording if store.fixed else None
        self._replays: dict[int, DecodeReplay] = {}

    @property
    def arithmetic(self) -> str:
        """What keys, values and states, and their bits, depend on beside the weights and the ids."""
        backend = "" if self.prompt_backend is None else f" {self.prompt_backend.name}"
        lie = repr((self.pages.groups, sorted(states_of(self.spec).items())))  # how they lie in pages and blocks
        kept = hashlib.sha256(lie.encode()).hexdigest()[:16]
        return " ".join([self.kernels.name, sources_digest(), kept, *self._rope_keys]) + backend

    def new_cache(self, capacity: int) -> KvSequence:
        """An empty sequence of up to `capacity` tokens."""
        return KvSequence(self.pages, capacity)

    def step(self, batch: Batch, *, cancelled: Callable[[], bool] | None = None) -> list[F32 | None]:
        """Append every stretch's ids to its sequence, all in one pass over the weights; returns what each wanted: None,
        logits (1 or n, vocab), or final normed states (n, d), new arrays. What a row computes does not depend on its
        company.

        Raises ContextLengthError when they do not fit, UsageError for ids outside the vocabulary, Cancelled when
        `cancelled()` became true between two layers. After any exception the sequences are as they were before.
        """
        tokens, cancelled = batch.tokens(self.spec.vocab_size), cancelled or never
        check(cancelled)
        self.store.begin()
        lengths = [each.sequence.length for each in batch.stretches]
        try:
            for each in batch.stretches:
                each.sequence.reserve(len(each.ids))
            if self._recording is not None and len(tokens) <= max(RECORDED_ROWS) and not self._on_backend(batch):
                return self._few_rows(batch, tokens, self._recording, cancelled)
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

    def _few_rows(self, batch: Batch, tokens: list[int], recording: Recording, cancelled: Cancel) -> list[F32 | None]:
        """By replaying recorded launches (`replay.DecodeReplay`)."""
        few, n = self._few, len(tokens)
        for row, token in enumerate(tokens):
            few.x[row] = self._embedded.row(token)
        rows = [(s.sequence, s.sequence.length + i) for s in batch.stretches for i in range(len(s.ids))]
        together = all(s.want in ("all", "last") and len(s.ids) == 1 or s.want == "all" for s in batch.stretches)
        self._replay(next(size for size in RECORDED_ROWS if size >= n), recording).run(rows, cancelled, together)
        out: list[F32 | None] = []
        low = 0
        for each in batch.stretches:
            high = low + len(each.ids)
            each.sequence.advance(high - low)
            if together:
                out.append(self._capped(few.logits[low:high].copy()))
            else:
                out.append(self._wanted(each.want, few.x[low:high]))
            low = high
        return out

    def _replay(self, rows: int, recording: Recording) -> DecodeReplay:
        found = self._replays.get(rows)
        if found is None:
            x, normed, logits = self._few.x[:rows], self._few.normed[:rows], self._few.logits[:rows]

            def make_logits() -> None:
                self.kernels.rms_norm(x, self._output_norm, self.spec.norm_eps, normed)
                self.kernels.matmul(self.store.head(), self.kernels.activations(normed), logits)

            found = self._replays[rows] = DecodeReplay(recording, self._layers, x, make_logits)
        return found

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
                self._layers.drop_scratch()
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
        for part, some in places.cut(self.store.wave_tokens or (backend.wave_tokens if backend else CHUNK)):
            with self.store.lend(activation_bytes(self.spec, some.rows), cancelled):
                x = self._wave(np.array(tokens[part], np.int32), some, backend, cancelled)
            low = 0
            for run in some.runs:
                run.sequence.advance(run.rows)
                index = next(i for i, each in enumerate(stretches) if each.sequence is run.sequence)
                left[index] -= run.rows
                want = stretches[index].want
                if want != "last" or not left[index]:
                    rows = self._wanted(want, x[low : low + run.rows])
                    found[index] += [] if rows is None else [rows]
                low += run.rows
        return [None if not each else each[0] if len(each) == 1 else np.concatenate(each) for each in found]

    def _wave(self, tokens: NDArray[np.int32], places: Places, backend: PromptBackend | None, cancelled: Cancel) -> F32:
        """All layers over some tokens, (T, d)."""
        x = self._embed(tokens)
        if backend is not None and len(x) >= backend.least_tokens:
            backend.run(PromptWalk(self._layers, x, places, cancelled))
        else:
            self._layers.wave(x, places, cancelled)
        return x

    def _on_backend(self, batch: Batch) -> bool:
        """Whether some stretch is a prompt for the backend: of one token none is."""
        backend = self.prompt_backend
        return backend is not None and any(len(s.ids) >= max(2, backend.least_tokens) for s in batch.stretches)

    def _wanted(self, want: Want, x: F32) -> F32 | None:
        """Of rows x (T, d), before the output norm."""
        if want == "none":
            return None
        x = x[-1:] if want == "last" else x
        normed = np.empty_like(x)
        self.kernels.rms_norm(x, self._output_norm, self.spec.norm_eps, normed)
        if want == "hidden":
            return normed
        out = np.empty((len(x), self.spec.vocab_size), np.float32)
        for low in range(0, len(x), _ALL_LOGITS):
            some = slice(low, low + _ALL_LOGITS)
            self.kernels.matmul(self.store.head(), self.kernels.activations(normed[some]), out[some])
        return self._capped(out)

    def _embed(self, tokens: NDArray[np.int32]) -> F32:
        """What enters the first layer, (T, d)."""
        x = self.store.embedding(tokens)
        if self.spec.family.scaled_embedding:
            self.kernels.scale(x, self.spec.d_model**0.5)
        return x

    def _capped(self, logits: F32) -> F32:
        """cap * tanh(logits / cap), in place, where the model has a cap."""
        cap = self.spec.logit_softcap
        if cap:
            np.multiply(np.tanh(logits / np.float32(cap)), np.float32(cap), out=logits)
        return logits

    def _tell_routing(self, layer: int, ids: I32) -> None:
        if self.on_routing is not None:
            self.on_routing(layer, ids)

    def _ropes(self, context: int) -> dict[Rotation, RopeTable]:
        """Of every way in which some layer rotates, for sequences of up to `context` tokens."""
        factors = self._rope_factors(context)
        rotations = {each.rotation for each in self.spec.layers if each.rotation is not None}
        return {
            each: RopeTable(*frequencies(each.dim, each.base, each.scaling, factors if each.from_file else None))
            for each in rotations
        }

    def _rope_factors(self, context: int) -> F32 | None:
        """Per-dimension divisors from the file: Llama 3.x's, or Phi-3's for contexts beyond the original or within."""
        factors = self.store.vector("rope_freqs")
        if factors is None:
            original = [each.rotation.scaling.original_context for each in self.spec.layers if each.rotation]
            stretched = context > max(original, default=0)
            factors = self.store.vector("rope_factors_long" if stretched else "rope_factors_short")
        if factors is not None and not ((factors > 0) & np.isfinite(factors)).all():
            raise FormatError("the file's factors of the rotation are not all positive numbers")
        return factors
