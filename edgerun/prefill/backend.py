"""A prompt's dense products on an ONNX Runtime device; attention and what grids cut off on the CPU.

Experts run on both: those that many rows of a wave chose on the device, where it was built for that, the others
meanwhile on the CPU. Which is which depends on the number of rows alone, so results do not depend on speeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from edgerun.errors import UsageError
from edgerun.events import SpanSink
from edgerun.formats.file_bytes import FileBytes
from edgerun.kernels.interface import F32, I32
from edgerun.models import ModelSpec
from edgerun.models.blocks.declared import ProductName
from edgerun.models.blocks.products import add_result, normed
from edgerun.models.prompt import PromptWalk
from edgerun.models.routed_rows import RoutedRows
from edgerun.prefill.build import BuiltModel
from edgerun.prefill.hadamard import rotate
from edgerun.prefill.ladder import LADDER, graph_chunks, padded
from edgerun.prefill.layer_files import GraphFile, weights_name
from edgerun.prefill.schedule import Side, Task, Timeline, run_tasks
from edgerun.prefill.segments import EXPERT, Segment, products_of, segments_of
from edgerun.prefill.sessions import Sessions
from edgerun.prefill.shadow import ShadowWeights, excess, find_shadow

EXPERT_ROWS = 16  # of a wave that make an expert worth a graph's run where nobody measured it


@dataclass
class _Chunk:
    """Rows of a wave on their way through the layers. `values`: what the last graphs gave, by name; `shadow`: what has
    to be added to results, by name."""

    rows: slice
    size: int  # of the graphs that take them; 0: as many as there are
    values: dict[str, F32] = field(default_factory=dict)
    shadow: dict[str, F32] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Work:
    """One chunk in one layer."""

    walk: PromptWalk
    chunk: _Chunk
    layer: int

    @property
    def x(self) -> F32:
        """Its rows of the residual stream, to be changed in place."""
        return self.walk.x[self.chunk.rows]


@dataclass(eq=False)
class _Experts:
    """A mixture layer's experts on their way."""

    walk: PromptWalk
    layer: int
    routed: RoutedRows | None = None


@dataclass(frozen=True, eq=False)
class _ExpertRows:
    """Some of the rows that chose an expert."""

    walk: PromptWalk
    routed: RoutedRows
    slots: I32
    size: int  # of the graph that takes them; 0: as many as there are

    def rows(self) -> F32:
        """What the graph is fed."""
        self.walk.check()
        return padded(self.routed.h[self.slots // self.routed.used], self.size)

    def take(self, result: F32) -> None:
        """What it gave."""
        self.routed.parts[self.slots] = result[: len(self.slots)]


class OnnxBackend:
    """`models.prompt.PromptBackend`. overlap: device and CPU work at once, on different chunks or products;
    expert_rows: an expert with as many rows of a wave is the device's, if its graph was built."""

    def __init__(
        self,
        spec: ModelSpec,
        built: BuiltModel,
        sessions: Sessions,
        *,
        overlap: bool = True,
        least_tokens: int = 16,
        expert_rows: int = EXPERT_ROWS,
    ) -> None:
        self.least_tokens = least_tokens
        self.expert_rows = expert_rows
        self.wave_tokens = 2 * max(LADDER)  # two chunks: one on the device while the CPU has the other
        self._spec = spec
        self._built = built
        self._sessions = sessions
        self._overlap = overlap
        self._products = [products_of(spec, layer) for layer in range(spec.n_layers)]
        self._files: dict[int, FileBytes] = {}  # the weights of layers
        self._shadows: dict[tuple[int, str], ShadowWeights] = {}
        self.timeline = Timeline()
        self._process = os.getpid()

    @property
    def name(self) -> str:
        built = self._built
        more = (":rotated" if built.rotated else "") + (":experts" if built.experts else "")
        return f"{self._sessions.device.name}:{built.scheme.name}{more}"

    @property
    def built(self) -> BuiltModel:
        """What it runs."""
        return self._built

    def close(self) -> None:
        """Give back what the provider holds."""
        self._sessions.close()
        self._shadows.clear()
        while self._files:
            self._files.popitem()[1].close()

    def run(self, walk: PromptWalk) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "prompt backends do not outlive a fork: load the model in the child, or use --prefill kernels"
            )
        if self._built.rotated:
            walk.x[:] = rotate(walk.x)
        if self._overlap and walk.may_run_ahead:
            self.run_layers(walk, range(self._spec.n_layers))
        else:  # weights come layer by layer: nobody may run ahead
            for layer in range(self._spec.n_layers):
                self.run_layers(walk, range(layer, layer + 1))
        if self._built.rotated:
            walk.x[:] = rotate(walk.x)

    def run_layers(self, walk: PromptWalk, layers: range) -> None:
        """Some layers, of a stream that is rotated already where it has to be."""
        whole = [_Chunk(rows, size) for rows, size in graph_chunks(len(walk.x), self._built.sizes)]
        two_sided = self._built.experts or any(self._built.layers[layer].ranges.outliers for layer in layers)
        alone = len(whole) == 1 and not two_sided
        tasks = self._tasks(walk, whole, layers)
        run_tasks(tasks, self.timeline, overlap=self._overlap and not alone)  # one chain of tasks overlaps with nothing

    def watch(self, watcher: SpanSink | None) -> None:
        self.timeline.watcher = watcher

    # -- the graph of tasks -------------------------------------------------------------------------------------

    def _tasks(self, walk: PromptWalk, whole: list[_Chunk], layers: range) -> list[Task]:
        tasks: list[Task] = []

        def add(side: Side, kind: str, run: Callable[[], None], after: Sequence[Task]) -> Task:
            tasks.append(Task(side, kind, run, tuple(after)))
            return tasks[-1]

        ends: list[list[Task]] = [[] for _ in whole]  # of every chunk: what its next task waits for
        for layer in layers:
            shadowed = self._built.layers[layer].ranges.shadowed
            first, second = segments_of(self._spec, layer, shadowed)
            if self._spec.family.early_router:
                ends = [[add("cpu", "route", partial(walk.route, layer), ends[0])]] * len(whole)
            attended: list[Task] = []
            for index, chunk in enumerate(whole):
                work = _Work(walk, chunk, layer)
                after = [add("backend", f"qkv {chunk.size}", partial(self._compute, work, first), ends[index])]
                if "qkv" in shadowed:
                    after.append(add("cpu", "shadow qkv", partial(self._shadow, work, "qkv"), ends[index]))
                attended = [add("cpu", f"attend {chunk.rows.start}", partial(self._attend, work), after + attended)]
                end = attended
                for segment in second:
                    after = [add("backend", f"{segment.name} {chunk.size}", partial(self._compute, work, segment), end)]
                    if segment.raw:
                        (product,) = segment.products
                        after.append(add("cpu", f"shadow {product}", partial(self._shadow, work, product), end))
                        after = [add("cpu", f"join {product}", partial(self._join, work, product), after)]
                    end = after
                ends[index] = end
            if self._spec.layers[layer].n_experts:
                every = [task for end in ends for task in end]
                if self._built.experts:
                    mixture = _Experts(walk, layer)
                    routed = [add("cpu", "choose", partial(self._choose, mixture), every)]
                    both = [
                        add("backend", "experts-there", partial(self._experts_there, mixture), routed),
                        add("cpu", "experts-here", partial(self._experts_here, mixture), routed),
                    ]
                    ends = [[add("cpu", "combine", partial(self._combine, mixture), both)]] * len(whole)
                else:
                    ends = [[add("cpu", "experts", partial(walk.experts, layer), every)]] * len(whole)
        return tasks

    # -- tasks --------------------------------------------------------------------------------------------------

    def _compute(self, work: _Work, segment: Segment) -> None:
        """On the device: a segment's graph for one chunk."""
        chunk = work.chunk
        rows = chunk.rows.stop - chunk.rows.start
        values = {"x": work.x, **chunk.values}
        feeds = {name: padded(values[name], chunk.size) for name in segment.inputs}
        results = self._sessions.run(GraphFile(work.layer, segment, chunk.size), feeds)
        for name, value in results.items():
            if name == "x_out":
                work.x[:] = value[:rows]
            else:
                chunk.values[name] = value[:rows]

    @staticmethod
    def _choose(mixture: _Experts) -> None:
        mixture.routed = mixture.walk.route_rows(mixture.layer)

    def _is_there(self, routed: RoutedRows, expert: int) -> bool:
        return len(routed.slots_of[expert]) >= self.expert_rows

    def _experts_there(self, mixture: _Experts) -> None:
        """On the device: those with many rows."""
        routed = mixture.routed
        assert routed is not None  # chosen before
        jobs = []
        for expert, slots in routed.slots_of.items():
            if self._is_there(routed, expert):
                for rows, size in graph_chunks(len(slots), self._built.sizes):
                    job = _ExpertRows(mixture.walk, routed, slots[rows], size)
                    jobs.append((GraphFile(mixture.layer, EXPERT, size, expert), job.rows, job.take))
        self._sessions.run_experts(jobs)

    def _experts_here(self, mixture: _Experts) -> None:
        routed = mixture.routed
        assert routed is not None  # chosen before
        few = [expert for expert in routed.chosen.tolist() if not self._is_there(routed, expert)]
        if few:
            mixture.walk.compute_experts(routed, np.array(few, np.int32))

    @staticmethod
    def _combine(mixture: _Experts) -> None:
        assert mixture.routed is not None  # chosen before
        mixture.walk.combine_experts(mixture.routed)

    def _attend(self, work: _Work) -> None:
        work.walk.check()
        self._add_shadow(work, "qkv")
        q, k, v = (work.chunk.values.pop(name) for name in ("q", "k", "v"))
        work.chunk.values["o"] = work.walk.attend(work.layer, work.chunk.rows.start, q, k, v)

    def _shadow(self, work: _Work, name: ProductName) -> None:
        """What the product's grid cuts off, multiplied."""
        product = self._products[work.layer][name]
        inner = {"x": work.x, **work.chunk.values}[{"o": "o", "down": "h"}.get(name, "x")]
        inner = normed(work.walk.kernels, self._vectors(work), product, inner)
        found = excess(inner, self._built.layers[work.layer].ranges.kept[name])
        if found is not None:
            cols, beyond = found
            for part in product.parts:
                weights = self._shadow_weights(work.layer, name, part.out)
                work.chunk.shadow[part.out] = (beyond @ weights.columns(cols)) * self._factor(work, part.tensor)

    def _join(self, work: _Work, name: ProductName) -> None:
        """What follows a product whose graph ends with it."""
        self._add_shadow(work, name)
        kernels, values = work.walk.kernels, work.chunk.values
        if name == "gate_up":
            gate, up = (np.ascontiguousarray(values.pop(out)) for out in ("gate", "up"))
            values["h"] = np.empty_like(gate)
            kernels.gated(gate, up, self._spec.activation, values["h"])
        else:
            t = np.array(values.pop("t"))
            add_result(kernels, self._vectors(work), self._products[work.layer][name], t, work.x)

    def _add_shadow(self, work: _Work, name: ProductName) -> None:
        for part in self._products[work.layer][name].parts:
            added = work.chunk.shadow.pop(part.out, None)
            if added is not None:
                work.chunk.values[part.out] = work.chunk.values[part.out] + added

    def _vectors(self, work: _Work) -> dict[str, F32]:
        vectors = work.walk.vectors(work.layer)
        if not self._built.rotated:
            return vectors
        ones = np.ones(self._spec.d_model, np.float32)  # a rotated stream's norms have moved into the matrices
        return {**vectors, "attn_norm": ones, "ffn_norm": ones}

    def _factor(self, work: _Work, tensor: str) -> np.float32:
        scale = work.walk.vectors(work.layer).get(tensor + ".scale")
        return np.float32(1.0 if scale is None else scale[0])

    def _shadow_weights(self, layer: int, product: ProductName, out: str) -> ShadowWeights:
        key = f"{product}.{out}"
        if (layer, key) not in self._shadows:
            if layer not in self._files:
                self._files[layer] = FileBytes(self._built.folder / weights_name(layer))
            mine = self._built.layers[layer]
            outliers = mine.ranges.outliers[product]
            self._shadows[layer, key] = find_shadow(self._files[layer], mine.stored, key, outliers)
        return self._shadows[layer, key]
