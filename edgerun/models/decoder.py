"""The one decoder: tokens in, logits out, for every declared family.

Its layers are plans of blocks (`plan.py`), computed by `layers.py` with the operations of `kernels`, the weights of a
`WeightStore` and the keys and values of a `KvSequence`. One token, a chunk of a prompt: the same call with another
number of rows. T rows at a time, d = d_model; all activations are f32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UsageError
from edgerun.events import never
from edgerun.kernels.compile import sources_digest
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.kv import KvLedger, KvOptions, KvSequence, PagePool
from edgerun.models.blocks.base import Cancel, Cut, check
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.footprint import activation_bytes
from edgerun.models.layers import Layers
from edgerun.models.places import Places
from edgerun.models.plan import plan_of
from edgerun.models.prompt import PromptBackend, PromptWalk
from edgerun.models.recent_rows import RecentRows
from edgerun.models.replay import DecodeReplay, is_replayable
from edgerun.models.rope import RopeTable, frequencies
from edgerun.models.spec import ModelSpec, Rotation
from edgerun.weights import WeightStore

_ALL_LOGITS = 64  # rows of logits made at a time: a vocabulary can be wide
_RECENT_BYTES = 1 << 20  # of embeddings that are kept


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
        self.plan = plan_of(spec)
        self.pages = PagePool(spec.kv_groups(kv), kv_ledger)
        output_norm = store.vector("output_norm")
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
        self._x, self._normed = (np.empty((1, spec.d_model), np.float32) for _ in range(2))  # of one token
        self._row_logits = np.empty((1, spec.vocab_size), np.float32)
        self._can_replay = kernels.recordable and store.fixed and is_replayable(self.plan)
        self._replay = DecodeReplay(kernels, self.plan, ropes, self._record, self._record_logits)

    @property
    def arithmetic(self) -> str:
        """What keys and values, and their bits, depend on beside the weights and the ids."""
        backend = "" if self.prompt_backend is None else f" {self.prompt_backend.name}"
        kept = hashlib.sha256(repr(self.pages.groups).encode()).hexdigest()[:16]  # how they lie in pages
        return " ".join([self.kernels.name, sources_digest(), kept, *self._rope_keys]) + backend

    def new_cache(self, capacity: int) -> KvSequence:
        """An empty sequence of up to `capacity` tokens."""
        return KvSequence(self.pages, capacity)

    def forward(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: KvSequence,
        *,
        logits: Literal["last", "all", "none"] = "last",
        cancelled: Callable[[], bool] | None = None,
    ) -> F32 | None:
        """Append `ids` at cache.length; returns logits (1 or n, vocab), a new array, or None.

        Raises ContextLengthError when they do not fit, UsageError for ids outside the vocabulary, Cancelled when
        `cancelled()` became true between two layers. After any exception the cache is as it was before.
        """
        if logits not in ("last", "all", "none"):
            raise UsageError(f"logits must be last, all or none, got {logits!r}")
        if len(ids) == 1 and self._can_replay:
            return self._decode(int(ids[0]), cache, logits != "none", cancelled or never)
        out: F32 | None = None
        if logits == "all":
            out = np.empty((len(ids), self.spec.vocab_size), np.float32)
        for low, x in self._chunks(ids, cache, cancelled or never):
            if logits == "all":
                assert out is not None
                for row in range(0, len(x), _ALL_LOGITS):
                    part = x[row : row + _ALL_LOGITS]
                    self._logits(part, out[low + row : low + row + len(part)])
            elif logits == "last" and low + len(x) == len(ids):
                out = np.empty((1, self.spec.vocab_size), np.float32)
                self._logits(x[-1:], out)
        return out

    def hidden(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: KvSequence,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> F32:
        """Append `ids`; returns their final normed states (n, d)."""
        out = np.empty((len(ids), self.spec.d_model), np.float32)
        for low, x in self._chunks(ids, cache, cancelled or never):
            self.kernels.rms_norm(x, self._output_norm, self.spec.norm_eps, out[low : low + len(x)])
        return out

    # -- one token ----------------------------------------------------------------------------------------------

    def _decode(self, token: int, cache: KvSequence, logits: bool, cancelled: Cancel) -> F32 | None:
        """`forward` of one token, by replaying recorded launches (`replay.DecodeReplay`)."""
        if not 0 <= token < self.spec.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.spec.vocab_size - 1}")
        check(cancelled)
        self.store.begin()
        cache.reserve(1)
        self._x[0] = self._embedded.row(token)
        self._replay.run(cache, cancelled, logits)
        cache.advance(1)
        if not logits:
            return None
        return self._capped(self._row_logits.copy())

    def _record(self, cache: KvSequence, cut: Cut) -> None:
        """All launches of one token but those of its logits."""
        self._layers.record(self._x, Places(cache, cache.length, 1), cut)

    def _record_logits(self) -> None:
        """The launches of one token's logits, after `_record`."""
        self.kernels.rms_norm(self._x, self._output_norm, self.spec.norm_eps, self._normed)
        self.kernels.matmul(self.store.head(), self.kernels.activations(self._normed), self._row_logits)

    # -- many tokens --------------------------------------------------------------------------------------------

    def _chunks(
        self, ids: Sequence[int] | NDArray[np.int32], cache: KvSequence, cancelled: Cancel
    ) -> list[tuple[int, F32]]:
        """Run all layers over every wave: (its first row, its states (T, d) before the output norm)."""
        tokens = np.asarray(ids, np.int32)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise UsageError("forward needs a list of at least one token id")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.spec.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.spec.vocab_size - 1}")
        self.store.begin()
        before = cache.length
        cache.reserve(len(tokens))
        done: list[tuple[int, F32]] = []
        wave = self.store.wave_tokens or (self.prompt_backend.wave_tokens if self.prompt_backend else CHUNK)
        try:
            for part in chunks(len(tokens), wave):
                with self.store.lend(activation_bytes(self.spec, part.stop - part.start), cancelled):
                    x = self._wave(tokens[part], cache, cancelled)
                cache.advance(len(x))
                done.append((part.start, x))
        except BaseException:
            cache.truncate(before)
            raise
        finally:
            if self.store.wave_tokens:  # memory is short: it is needed for weights now
                self._layers.drop_scratch()
        return done

    def _wave(self, tokens: NDArray[np.int32], cache: KvSequence, cancelled: Cancel) -> F32:
        """All layers over some tokens, (T, d)."""
        x = self._embed(tokens)
        places = Places(cache, cache.length, len(x))
        if self.prompt_backend is not None and len(x) >= self.prompt_backend.least_tokens:
            self.prompt_backend.run(PromptWalk(self._layers, x, places, cancelled))
        else:
            self._layers.wave(x, places, cancelled)
        return x

    def _embed(self, tokens: NDArray[np.int32]) -> F32:
        """What enters the first layer, (T, d)."""
        x = self.store.embedding(tokens)
        if self.spec.family.scaled_embedding:
            self.kernels.scale(x, self.spec.d_model**0.5)
        return x

    def _logits(self, x: F32, out: F32) -> None:
        """States before the output norm (T, d) -> (T, vocab)."""
        normed = np.empty_like(x)
        self.kernels.rms_norm(x, self._output_norm, self.spec.norm_eps, normed)
        self.kernels.matmul(self.store.head(), self.kernels.activations(normed), out)
        self._capped(out)

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
        rotations = {each.mixer.rotation for each in self.plan if each.mixer.rotation is not None}
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
