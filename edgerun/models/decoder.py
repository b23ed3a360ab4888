"""The one decoder: tokens in, logits out, for every declared family.

It walks the layers with the operations of `kernels`, asks a `WeightStore` for each layer's weights and keeps keys
and values in a `KvSequence`. One token, a chunk of a prompt: the same call with another number of rows. T rows at a
time, d = d_model; all activations are f32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UsageError
from edgerun.events import never
from edgerun.kernels.interface import F32, I32, Activations, Expert, Kernels, Matrix
from edgerun.kernels.pages import Span
from edgerun.kv import KvLedger, KvOptions, KvSequence, PagePool
from edgerun.models.chunks import chunks
from edgerun.models.footprint import CHUNK, activation_bytes
from edgerun.models.mixture import RoutedRows, bounded, likeliest
from edgerun.models.prompt import PromptBackend, PromptWalk, check
from edgerun.models.recent_rows import RecentRows
from edgerun.models.replay import Decide, DecodeReplay
from edgerun.models.rope import RopeTable, frequencies
from edgerun.models.scratch import MOST_AHEAD, Scratch
from edgerun.models.spec import ModelSpec, RopeScaling
from edgerun.weights import LayerWeights, WeightStore

_ALL_LOGITS = 64  # rows of logits made at a time: a vocabulary can be wide
_UNASKED_BYTES = 32 << 20  # of weights that a token passes between two looks at `cancelled`: one or two milliseconds
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
        self.pages = PagePool(spec.kv_groups(kv), kv_ledger)
        factors = self._rope_factors(context or spec.context_length)
        self._rope = RopeTable(*frequencies(spec.rope_dim, spec.rope_base, spec.rope_scaling, factors))
        self._local_rope = self._rope
        if spec.family.local_rope_base:
            self._local_rope = RopeTable(*frequencies(spec.rope_dim, spec.family.local_rope_base, RopeScaling()))
        output_norm = store.vector("output_norm")
        assert output_norm is not None  # shapes.check_tensors
        self._output_norm = output_norm
        self.on_routing: Callable[[int, I32], None] | None = None  # told each layer's choices, (T, k) ids
        self.prompt_backend: PromptBackend | None = None  # computes a prompt's dense products, if not the kernels
        self._single = Scratch(spec, 1)
        self._embedded = RecentRows(
            lambda token: self._embed(np.array([token], np.int32))[0], spec.d_model, _RECENT_BYTES
        )
        self._slot = [np.array([slot], np.int32) for slot in range(max(1, spec.n_experts_used))]
        self._several: dict[int, Scratch] = {}
        self._can_replay = kernels.recordable and store.fixed
        self._replay: DecodeReplay | None = None

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

    def _decode(self, token: int, cache: KvSequence, logits: bool, cancelled: Callable[[], bool]) -> F32 | None:
        """`forward` of one token, by replaying recorded launches (`replay.DecodeReplay`)."""
        if not 0 <= token < self.spec.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.spec.vocab_size - 1}")
        check(cancelled)
        self.store.begin()
        cache.reserve(1)
        self._single.x[0] = self._embedded.row(token)
        if self._replay is None:
            self._replay = DecodeReplay(self)
        self._replay.run(cache, cancelled, logits)
        cache.advance(1)
        if not logits:
            return None
        return self._capped(self._single.logits.copy())

    def record_decode(self, cache: KvSequence, cut: Callable[[Decide, int], None]) -> None:
        """All launches of one token but those of its logits, for a recorder. Where Python must decide (experts,
        neurons, whether to go on), `cut` is called with what decides and its layer. Addresses are remembered beyond the
        leases: `store.fixed`."""
        s, unasked_bytes = self._single, 0
        for layer in range(self.spec.n_layers):
            with self.store.layer(layer) as w:
                unasked_bytes += sum(matrix.n_bytes for matrix in w.matrices.values())
                if unasked_bytes > _UNASKED_BYTES:
                    cut(self._go_on, layer)
                    unasked_bytes = 0
                if self.spec.family.early_router:
                    self._routers(layer, w, s.x, s.router, s.ahead)
                    if self.store.lookahead:
                        cut(self._announce, layer)
                self._attention(layer, w, s.x, cache, s, cache.length)
                if self.spec.n_experts:
                    self.kernels.rms_norm(s.x, w.vectors["ffn_norm"], self.spec.norm_eps, s.h)
                    if not self.spec.family.early_router:
                        self._routers(layer, w, s.h, s.router, s.ahead)
                    cut(self._decode_experts, layer)
                elif self.spec.sparse:
                    self.kernels.rms_norm(s.x, w.vectors["ffn_norm"], self.spec.norm_eps, s.h)
                    self._product(w, "ffn_gate", self.kernels.activations(s.h), s.gate)
                    cut(self._decode_neurons, layer)
                else:
                    self._feed_forward(layer, w, s.x, s, never)

    def record_logits(self) -> None:
        """The launches of one token's logits, after `record_decode`."""
        s = self._single
        self.kernels.rms_norm(s.x, self._output_norm, self.spec.norm_eps, s.normed)
        self.kernels.matmul(self.store.head(), self.kernels.activations(s.normed), s.logits)

    def rope_addresses(self, position: int) -> tuple[int, int, int, int]:
        """Of the cosines and sines (rope_dim / 2,) of one position: of layers that see all, of those with a window."""
        return *self._rope.addresses(position), *self._local_rope.addresses(position)

    # -- layers -------------------------------------------------------------------------------------------------

    def _chunks(
        self, ids: Sequence[int] | NDArray[np.int32], cache: KvSequence, cancelled: Callable[[], bool]
    ) -> list[tuple[int, F32]]:
        """Run all layers over every chunk: (its first row, its states (T, d) before the output norm)."""
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
                self._several.clear()
        return done

    def _wave(self, tokens: NDArray[np.int32], cache: KvSequence, cancelled: Callable[[], bool]) -> F32:
        """All layers over some tokens, each layer over all of them before the next: it is needed once. (T, d)."""
        x = self._embed(tokens)
        if self.prompt_backend is not None and len(x) >= self.prompt_backend.least_tokens:
            self.prompt_backend.run(PromptWalk(self, x, cache, cancelled))
            return x
        parts = chunks(len(x), CHUNK)
        for layer in range(self.spec.n_layers):
            routed = self.route_early(layer, x) if self.spec.family.early_router else None
            check(cancelled)
            with self.store.layer(layer, cancelled) as weights:
                for index, part in enumerate(parts):
                    if index:
                        check(cancelled)
                    scratch = self.scratch(part.stop - part.start)
                    self._attention(layer, weights, x[part], cache, scratch, cache.length + part.start)
                    if not self.spec.n_experts:
                        self._feed_forward(layer, weights, x[part], scratch, cancelled)
            if self.spec.n_experts:
                self.expert_layer(layer, x, routed, cancelled)
        return x

    def _embed(self, tokens: NDArray[np.int32]) -> F32:
        """What enters the first layer, (T, d)."""
        x = self.store.embedding(tokens)
        if self.spec.family.scaled_embedding:
            self.kernels.scale(x, self.spec.d_model**0.5)
        return x

    def scratch(self, rows: int) -> Scratch:
        """Buffers for so many rows."""
        if rows == 1:
            return self._single
        if rows not in self._several:
            if len(self._several) > 1:  # a wave has whole chunks and a rest
                self._several.clear()
            self._several[rows] = Scratch(self.spec, rows)
        return self._several[rows]

    def _attention(self, layer: int, w: LayerWeights, x: F32, cache: KvSequence, s: Scratch, start: int) -> None:
        """x += attention(norm(x)), the rows being positions start and on."""
        spec, family, kernels = self.spec, self.spec.family, self.kernels
        vectors, matrices = w.vectors, w.matrices
        kernels.rms_norm(x, vectors["attn_norm"], spec.norm_eps, s.h)
        rows = kernels.activations(s.h)
        if family.fused_qkv:
            self._product(w, "attn_qkv", rows, s.qkv)
            if s.rows > 1:
                k_at, v_at = s.q.shape[1], s.q.shape[1] + s.k.shape[1]
                s.q[:], s.k[:], s.v[:] = s.qkv[:, :k_at], s.qkv[:, k_at:v_at], s.qkv[:, v_at:]
        else:
            kernels.matmul_many((matrices["attn_q"], matrices["attn_k"], matrices["attn_v"]), rows, (s.q, s.k, s.v))
            for name, out in (("attn_q", s.q), ("attn_k", s.k), ("attn_v", s.v)):
                self._scale_and_bias(vectors, name, out)
        self.attend(layer, vectors, cache, s, start)
        if family.sub_norms:
            kernels.rms_norm(s.o, vectors["attn_sub_norm"], spec.norm_eps, s.o)
        self._add_product(w, "attn_output", s.o, x, s, "post_attention_norm")

    def attend(self, layer: int, vectors: dict[str, F32], cache: KvSequence, s: Scratch, start: int) -> None:
        """s.o = attention of the queries s.q over the cache and over s.k and s.v, which are written to it; the rows are
        positions start and on."""
        spec, family, kernels = self.spec, self.spec.family, self.kernels
        if family.qk_norm == "head":
            kernels.rms_norm(s.q_rows, vectors["attn_q_norm"], spec.norm_eps, s.q_rows)
            kernels.rms_norm(s.k_rows, vectors["attn_k_norm"], spec.norm_eps, s.k_rows)
        elif family.qk_norm == "full":
            kernels.rms_norm(s.q, vectors["attn_q_norm"], spec.norm_eps, s.q)
            kernels.rms_norm(s.k, vectors["attn_k_norm"], spec.norm_eps, s.k)
        window = spec.window(layer)
        cos, sin = (self._local_rope if window else self._rope).at(start, s.rows)
        if spec.rotates(layer):
            for heads in s.rotated:
                kernels.rope(heads, cos, sin, family.rope)
        spans = [Span(cache.pages(layer), start, s.rows)]
        kernels.kv_write(spans, s.k_heads, s.v_heads)
        kernels.attention(
            s.q_heads,
            spans,
            s.o_heads,
            scale=spec.attention_scale,
            softcap=spec.attention_softcap,
            window=window,
        )

    def _feed_forward(self, layer: int, w: LayerWeights, x: F32, s: Scratch, cancelled: Callable[[], bool]) -> None:
        """x += feed-forward(norm(x)), the dense one."""
        spec, family, kernels = self.spec, self.spec.family, self.kernels
        kernels.rms_norm(x, w.vectors["ffn_norm"], spec.norm_eps, s.h)
        rows = kernels.activations(s.h)
        if spec.sparse:
            self._product(w, "ffn_gate", rows, s.gate)
            self._fired(layer, x, rows, s, cancelled)
            return
        if family.fused_gate_up:
            self._product(w, "ffn_up", rows, s.gate_up)
            if s.rows > 1:
                half = s.gate.shape[1]
                s.gate[:], s.up[:] = s.gate_up[:, :half], s.gate_up[:, half:]
        else:
            kernels.matmul_many((w.matrices["ffn_gate"], w.matrices["ffn_up"]), rows, (s.gate, s.up))
            self._scale_and_bias(w.vectors, "ffn_gate", s.gate)
            self._scale_and_bias(w.vectors, "ffn_up", s.up)
        kernels.gated(s.gate, s.up, spec.activation, s.gate)
        if family.sub_norms:
            kernels.rms_norm(s.gate, w.vectors["ffn_sub_norm"], spec.norm_eps, s.gate)
        self._add_product(w, "ffn_down", s.gate, x, s, "post_ffw_norm")

    def _fired(self, layer: int, x: F32, rows: Activations, s: Scratch, cancelled: Callable[[], bool]) -> None:
        """x += the neurons whose gate s.gate (T, ff) fired for any of the rows. `rows`: those of s.h."""
        ids = np.flatnonzero((s.gate > 0).any(axis=0)).astype(np.int32)
        with self.store.neurons(layer, ids, cancelled) as batches:
            for batch in batches:
                self.kernels.neurons_up(s.gate, rows, batch.ready, self.spec.activation, s.up)
                rest = batch.rest()
                if rest is not None:
                    self.kernels.neurons_up(s.gate, rows, rest, self.spec.activation, s.up)
                self.kernels.neurons_down(s.up, batch.every, x)

    def _route_wave(self, layer: int, w: LayerWeights, h: F32) -> tuple[F32, list[F32]]:
        """Router logits (T, experts) for all rows of a wave: this layer's, and those of later layers."""
        router, *ahead = np.empty((1 + MOST_AHEAD, len(h), self.spec.n_experts), np.float32)
        self._routers(layer, w, h, router, ahead)
        return router, ahead

    def route_early(self, layer: int, x: F32) -> tuple[F32, list[F32]]:
        """What the router before a layer's attention says of all rows of a wave; their experts are asked for."""
        with self.store.layer(layer) as w:
            routed = self._route_wave(layer, w, x)
        self.store.expect(layer, likeliest(routed[0], self.spec.n_experts_used), 0)
        return routed

    def expert_layer(
        self,
        layer: int,
        x: F32,
        routed: tuple[F32, list[F32]] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        """x += experts(norm(x)) for all rows of a wave, so that each expert is asked for once. `routed`: what an early
        router said."""
        rows = self.route_rows(layer, x, routed)
        self.compute_experts(rows, rows.chosen, cancelled)
        self.combine_experts(rows, x)

    def route_rows(self, layer: int, x: F32, routed: tuple[F32, list[F32]] | None) -> RoutedRows:
        """Which experts each row of x (T, d) goes to."""
        spec = self.spec
        h = np.empty_like(x)
        with self.store.layer(layer) as w:
            self.kernels.rms_norm(x, w.vectors["ffn_norm"], spec.norm_eps, h)
            router, ahead = routed or self._route_wave(layer, w, h)
        parts = np.empty((len(x) * spec.n_experts_used, spec.d_model), np.float32)
        return self._routed_rows(layer, h, router, ahead, parts)

    def _go_on(self, layer: int, cancelled: Callable[[], bool]) -> None:
        """Between two recorded pieces: whether to."""
        check(cancelled)

    def _decode_neurons(self, layer: int, cancelled: Callable[[], bool]) -> None:
        """The neurons of one token, between two recorded pieces."""
        check(cancelled)
        s = self._single
        self._fired(layer, s.x, self.kernels.activations(s.h), s, cancelled)

    def _announce(self, layer: int, cancelled: Callable[[], bool]) -> None:
        """One token's experts are known before the layer's attention: they can be read meanwhile."""
        self.store.expect(layer, likeliest(self._single.router, self.spec.n_experts_used), 0)

    def _decode_experts(self, layer: int, cancelled: Callable[[], bool]) -> None:
        """The experts of one token, between two recorded pieces."""
        check(cancelled)
        s = self._single
        rows = self._routed_rows(layer, s.h, s.router, s.ahead, s.parts)
        self.compute_experts(rows, rows.chosen, cancelled)
        self.combine_experts(rows, s.x)

    def _routers(self, layer: int, w: LayerWeights, h: F32, router: F32, ahead: list[F32]) -> None:
        """This layer's router logits (T, experts) and, for a store that reads ahead, those of the next layers' routers
        for the same input: the residual stream changes little from layer to layer, so they mostly name the experts
        that these layers will choose."""
        with contextlib.ExitStack() as stack:  # a mixture's dense weights all stay, so that several may be lent
            later = [stack.enter_context(self.store.layer(each)) for each in self._later(layer, len(h))]
            matrices = [each.matrices["ffn_gate_inp"] for each in (w, *later)]
            self.kernels.matmul_many(matrices, self.kernels.activations(h), [router, *ahead[: len(later)]])

    def _later(self, layer: int, tokens: int) -> range:
        """The layers whose routers are asked beside this one's; a prompt needs nearly all of the next's anyway."""
        ahead = min(self.store.lookahead, MOST_AHEAD if tokens == 1 else 1)
        return range(layer + 1, min(layer + 1 + ahead, self.spec.n_layers))

    def _routed_rows(self, layer: int, h: F32, router: F32, ahead: list[F32], parts: F32) -> RoutedRows:
        """What `router` (T, experts) chooses for h (T, d)."""
        spec = self.spec
        ids, weights = self.kernels.route(
            router,
            spec.n_experts_used,
            spec.router,
            renormalise=spec.family.renormalise,
            scale=spec.expert_scale,
        )
        if self.on_routing is not None:
            self.on_routing(layer, ids)
        self.store.routed(layer, ids)
        if len(h) == 1:
            slots_of = {expert: self._slot[slot] for slot, expert in enumerate(ids[0].tolist())}
        else:
            order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
            chosen, first = np.unique(ids.reshape(-1)[order], return_index=True)
            slots_of = dict(zip(chosen.tolist(), np.split(order, first[1:]), strict=True))
        return RoutedRows(layer, h, weights, slots_of, ahead, parts)

    def compute_experts(self, routed: RoutedRows, some: I32, cancelled: Callable[[], bool]) -> None:
        """The results of some of the chosen experts (ascending) into `routed.parts`."""
        tokens, slots_of, used = len(routed.h), routed.slots_of, self.spec.n_experts_used
        rows = self.kernels.activations(routed.h)
        with self.lent_experts(routed, some, cancelled) as batches:
            for ready in batches:
                for experts in bounded(ready, slots_of):
                    if tokens > 1:
                        check(cancelled)
                    slots = [slots_of[expert.id] for expert in experts]
                    mine = [slot // np.int32(used) for slot in slots] if tokens > 1 else self._slot[:1] * len(experts)
                    self.kernels.experts_ffn(experts, rows, mine, slots, self.spec.activation, routed.parts)

    @contextlib.contextmanager
    def lent_experts(
        self, routed: RoutedRows, some: I32, cancelled: Callable[[], bool]
    ) -> Iterator[Iterator[list[Expert]]]:
        """Some of the chosen experts (ascending) in batches, as of `WeightStore.experts`."""
        tokens = len(routed.h)
        uses = np.array([len(routed.slots_of[each]) for each in some.tolist()], np.int32) if tokens > 1 else None
        with self.store.experts(routed.layer, some, uses, tokens, cancelled) as batches:
            for later, logits in zip(self._later(routed.layer, tokens), routed.ahead, strict=False):
                self.store.expect(later, likeliest(logits, self.spec.n_experts_used), later - routed.layer)
            yield batches

    def combine_experts(self, routed: RoutedRows, x: F32) -> None:
        """x (T, d) += the sum of each row's experts, and the shared one."""
        self.kernels.combine(routed.parts, routed.weights, x, add=True)
        if self.spec.d_ff_shared:
            with self.store.layer(routed.layer) as w:
                for part in chunks(len(x), CHUNK):
                    self._shared_expert(w, x[part], routed.h[part])

    def _shared_expert(self, w: LayerWeights, x: F32, h: F32) -> None:
        """x += the expert that every token uses, weighted by a gate of its own."""
        kernels, s = self.kernels, self.scratch(len(x))
        rows = kernels.activations(h)
        kernels.matmul_many((w.matrices["ffn_gate_shexp"], w.matrices["ffn_up_shexp"]), rows, (s.gate, s.up))
        kernels.gated(s.gate, s.up, self.spec.activation, s.gate)
        kernels.matmul(w.matrices["ffn_down_shexp"], kernels.activations(s.gate), s.t)
        gate = 1.0 / (1.0 + np.exp(-(h * w.vectors["ffn_gate_inp_shexp"]).sum(axis=1)))  # row by row: no BLAS
        x += s.t * gate[:, None].astype(np.float32)

    # -- products -----------------------------------------------------------------------------------------------

    def _product(self, w: LayerWeights, name: str, rows: object, out: F32) -> None:
        self.kernels.matmul(w.matrices[name], rows, out)  # type: ignore[arg-type]
        self._scale_and_bias(w.vectors, name, out)

    def _scale_and_bias(self, vectors: dict[str, F32], name: str, out: F32) -> None:
        scale = vectors.get(name + ".scale")
        if scale is not None:
            self.kernels.scale(out, float(scale[0]))
        bias = vectors.get(name + ".bias")
        if bias is not None:
            self.kernels.add(out, bias)

    def _add_product(self, w: LayerWeights, name: str, inner: F32, x: F32, s: Scratch, norm: str) -> None:
        """x += inner @ w.T, through a bias, a scale or a norm where the model has one."""
        rows = self.kernels.activations(inner)
        plain = name + ".scale" not in w.vectors and name + ".bias" not in w.vectors
        if plain and not self.spec.family.post_norms:
            self.kernels.matmul(w.matrices[name], rows, x, add=True)
            return
        self._product(w, name, rows, s.t)
        if self.spec.family.post_norms:
            self.kernels.rms_norm(s.t, w.vectors[norm], self.spec.norm_eps, s.t)
        self.kernels.add(x, s.t)

    def _logits(self, x: F32, out: F32) -> None:
        """States before the output norm (T, d) -> (T, vocab)."""
        head: Matrix = self.store.head()
        normed = np.empty_like(x)
        self.kernels.rms_norm(x, self._output_norm, self.spec.norm_eps, normed)
        self.kernels.matmul(head, self.kernels.activations(normed), out)
        self._capped(out)

    def _capped(self, logits: F32) -> F32:
        """cap * tanh(logits / cap), in place, where the model has a cap."""
        cap = self.spec.logit_softcap
        if cap:
            np.multiply(np.tanh(logits / np.float32(cap)), np.float32(cap), out=logits)
        return logits

    def _rope_factors(self, context: int) -> F32 | None:
        """Per-dimension divisors from the file: Llama 3.x's, or Phi-3's for contexts beyond the original or within."""
        factors = self.store.vector("rope_freqs")
        if factors is None:
            stretched = context > self.spec.rope_scaling.original_context
            factors = self.store.vector("rope_factors_long" if stretched else "rope_factors_short")
        if factors is not None and not ((factors > 0) & np.isfinite(factors)).all():
            raise FormatError("the file's factors of the rotation are not all positive numbers")
        return factors
