"""Rows through all layers and the head, once it is known what enters the first layer: a few rows whose launches are
recorded, or a wave of a prompt. Of a shard these are its parts of the layers, and its rows of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerun.errors import FormatError
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.models.blocks.base import Cancel
from edgerun.models.blocks.norms import apply_norm
from edgerun.models.footprint import activation_bytes
from edgerun.models.layers import RECORDED_ROWS, Layers
from edgerun.models.places import Pass, Places
from edgerun.models.prompt import PromptBackend, PromptWalk
from edgerun.models.ranks import Ranks
from edgerun.models.replay import DecodeReplay
from edgerun.models.rope import RopeTable, table_of
from edgerun.models.spec import ModelSpec, Rotation
from edgerun.models.streams import JoinBuffers, Streams
from edgerun.weights import WeightStore

_LOGITS_ROWS = 64  # whose logits are made at a time: a vocabulary can be wide


class FewRows:
    """Buffers that recordings of up to `rows` rows share: x (rows, width) what enters the first layer and leaves the
    last, normed (rows, d) the same, logits (rows, vocabulary) its logits."""

    def __init__(self, rows: int, spec: ModelSpec, vocabulary: int) -> None:
        self.x = np.empty((rows, spec.width), np.float32)
        self.normed = np.empty((rows, spec.d_model), np.float32)
        self.logits = np.empty((rows, vocabulary), np.float32)


class Passes:
    """`spec` says what to compute, `store` has the weights, `kernels` computes. One call at a time.

    context: tokens that a sequence may have; some models rotate by it. routed: told each layer's choices of experts,
    (T, used) ids. ranks: those who have the rest of every layer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        store: WeightStore,
        kernels: Kernels,
        *,
        context: int,
        routed: Callable[[int, I32], None],
        ranks: Ranks | None = None,
    ) -> None:
        self.spec = spec
        self.store = store
        self.kernels = kernels
        output_norm = store.vector(spec.family.output_norm)
        assert output_norm is not None  # shapes.check_tensors
        self._output_norm, self._output_norm_bias = output_norm, store.vector("output_norm.bias")
        self._output_bias, self._output_scale = store.vector("output.bias"), store.vector("output.scale")
        ropes = self._ropes(context)
        self.rope_keys = sorted(rope.key for rope in ropes.values())
        self.layers = Layers(spec, store, kernels, ropes, routed, ranks)
        vocabulary = spec.vocab_size if spec.shard is None else spec.shard.vocabulary
        self.few = FewRows(max(RECORDED_ROWS), spec, vocabulary)
        self._streams = Streams(spec, store, kernels) if spec.streams > 1 else None
        self.recording = kernels.recording if store.fixed else None
        self._replays: dict[int, DecodeReplay] = {}
        self._fed: dict[int, F32] = {}  # see `_inputs`

    @property
    def most_few(self) -> int:
        """Rows of a pass of few, at most; 0: nothing can be recorded."""
        return 0 if self.recording is None else max(RECORDED_ROWS)

    def run(self, task: Pass, x: F32, cancelled: Cancel, backend: PromptBackend | None = None) -> F32:
        """All layers over x (T, width), in place, which of a few rows begins at `few.x`; returns the logits that are
        wanted (n, vocabulary), lent until the next call. backend: who computes a wave's dense products.

        Positions are written after what the sequences have, which does not count them yet."""
        if not task.few or self.recording is None:
            self._wave(task, x, cancelled, backend)
            return self.logits(x[task.wanted])
        rows = [(run.sequence, run.start + i) for run in task.runs for i in range(run.rows)]
        n, all_wanted = len(rows), len(task.wanted) == len(rows)
        if task.inputs is not None:
            fed = self._inputs(n)
            fed[:, :n], fed[:, n:] = task.inputs, task.inputs[:, -1:]
        self._replay(n).run(rows, cancelled, all_wanted)
        return self.few.logits[:n] if all_wanted else self.logits(self.few.x[task.wanted])

    def normed(self, x: F32) -> F32:
        """Final states (T, d) of what leaves the last layer, (T, width)."""
        out = np.empty((len(x), self.spec.d_model), np.float32)
        self._norm(x, out, None if self._streams is None else self._streams.buffers(len(x)))
        return out

    def _norm(self, x: F32, out: F32, joined: JoinBuffers | None) -> None:
        """joined: of several streams, which are joined first."""
        if self._streams is not None and joined is not None:
            self._streams.join(x, out, joined)
            x = out
        vectors = {"output_norm": self._output_norm}
        if self._output_norm_bias is not None:
            vectors["output_norm.bias"] = self._output_norm_bias
        apply_norm(self.kernels, vectors, "output_norm", self.spec.family.norm, self.spec.norm_eps, x, out)

    def _head(self, normed: F32, out: F32) -> None:
        """out (T, vocabulary), scaled as the model wants it."""
        self.kernels.matmul(self.store.head(), self.kernels.activations(normed), out)
        if self._output_scale is not None:
            self.kernels.scale(out, float(self._output_scale[0]))
        if self._output_bias is not None:
            self.kernels.add(out, self._output_bias)
        if self.spec.logit_scale != 1.0:
            self.kernels.scale(out, self.spec.logit_scale)

    def logits(self, x: F32) -> F32:
        """(T, vocabulary) of what leaves the last layer."""
        out = np.empty((len(x), self.few.logits.shape[1]), np.float32)
        for low in range(0, len(x), _LOGITS_ROWS):
            some = slice(low, low + _LOGITS_ROWS)
            self._head(self.normed(x[some]), out[some])
        return out

    def _wave(self, task: Pass, x: F32, cancelled: Cancel, backend: PromptBackend | None) -> None:
        places = Places(task.runs)
        with self.store.lend(activation_bytes(self.spec, len(x)), cancelled):
            if backend is not None and len(x) >= backend.least_tokens:
                backend.run(PromptWalk(self.layers, x, places, cancelled))
            else:
                self.layers.wave(x, places, cancelled, task.inputs)

    def _inputs(self, n: int) -> F32:
        """What recordings of so many rows feed their layers beside. Rows that are nobody's are fed what the last is:
        while a step is recorded they write what it writes."""
        rows = _recorded_rows(n)
        return self._fed.setdefault(rows, np.zeros((self.spec.n_layers, rows, self.spec.per_layer_width), np.float32))

    def _replay(self, n: int) -> DecodeReplay:
        """For so many rows, by the next larger recording."""
        rows = _recorded_rows(n)
        found = self._replays.get(rows)
        if found is None:
            assert self.recording is not None  # most_few
            x, normed, logits = self.few.x[:rows], self.few.normed[:rows], self.few.logits[:rows]

            fed = self._inputs(n) if self.spec.per_layer_width else None
            joined = None if self._streams is None else self._streams.buffers(rows)

            def make_logits() -> None:
                self._norm(x, normed, joined)
                self._head(normed, logits)

            found = self._replays[rows] = DecodeReplay(self.recording, self.layers, x, make_logits, fed)
        return found

    def _ropes(self, context: int) -> dict[Rotation, RopeTable]:
        """Of every way in which some layer rotates, for sequences of up to `context` tokens."""
        factors = self._rope_factors(context)
        return {each: table_of(each, factors) for each in self.spec.rotations}

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


def _recorded_rows(n: int) -> int:
    """Of the recording for so many rows."""
    return next(size for size in RECORDED_ROWS if size >= n)
