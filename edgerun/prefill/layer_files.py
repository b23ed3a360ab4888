"""A layer on disk: one file of weights, page-aligned so that it can be mapped, and its small graphs beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.gguf import GgufFile
from edgerun.models import ModelSpec
from edgerun.paths import write_kept
from edgerun.prefill.graphs import LayerConstants, Stored, build_graph
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schemes import Scheme
from edgerun.prefill.segments import EXPERT, Segment, expert_products, products_of, segments_of
from edgerun.prefill.weights import LayerReader, PartWeights, narrow, pack_nibbles, same_nibbles

_PAGE = 4096


@dataclass(frozen=True)
class GraphFile:
    """One graph. `tokens`: 0 for any number; `expert`: whose it is, if not all tokens'."""

    layer: int
    segment: Segment
    tokens: int
    expert: int | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.ladder_name}-{self.tokens or 'any'}.onnx"

    @property
    def ladder_name(self) -> str:
        """Of this graph and those for other numbers of tokens."""
        of = self.segment.name if self.expert is None else f"expert-{self.expert:04d}"
        return f"layer-{self.layer:03d}-{of}"


def weights_name(layer: int) -> str:
    """Of a layer's weight file."""
    return f"layer-{layer:03d}.weights"


def experts_name(layer: int) -> str:
    """Of the file with the weights of a layer's experts."""
    return f"layer-{layer:03d}.experts"


def write_layer(
    folder: Path,
    gguf: GgufFile,
    spec: ModelSpec,
    layer: int,
    scheme: Scheme,
    ranges: LayerRanges,
    sizes: Sequence[int],
    *,
    rotated: bool = False,
    experts: bool = False,
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Write a layer's weights and the graphs of all its segments for each number of tokens in `sizes` (0: any), and
    those of its experts; returns where the weights lie, of experts by names that begin with "EXPERT/". Nothing has its
    final name before it is whole."""
    reader = LayerReader(gguf, spec, layer, rotated=rotated)
    constants = _write_weights(folder / weights_name(layer), reader, spec, scheme, ranges)
    first, second = segments_of(spec, layer, ranges.shadowed)
    graphs = [(GraphFile(layer, segment, tokens), constants) for segment in (first, *second) for tokens in sizes]
    stored = dict[str, Stored]()
    if experts:
        path = folder / experts_name(layer)
        write_kept(path, _placed(stored, _expert_weights(reader, spec, scheme)))
        for expert in range(spec.layers[layer].n_experts):
            mine = LayerConstants(path.name, _of_expert(stored, expert), {}, {})
            graphs += [(GraphFile(layer, EXPERT, tokens, expert), mine) for tokens in sizes]
    for file, known in graphs:
        model = build_graph(spec, layer, file.segment, scheme, known, ranges.kept, file.tokens or None)
        write_kept(folder / file.name, [model])
    return dict(constants.stored), stored


def _expert_weights(reader: LayerReader, spec: ModelSpec, scheme: Scheme) -> Iterator[_Constant]:
    for expert in range(spec.layers[reader.layer].n_experts):
        for product in expert_products(spec, reader.layer).values():
            for part in product.parts:
                made = reader.part(product, part, expert)
                yield from _narrowed(f"{expert}/{product.name}.{part.out}", made, scheme)


def _of_expert(stored: Mapping[str, Stored], expert: int) -> dict[str, Stored]:
    """One expert's constants by their names in its graph."""
    prefix = f"{expert}/"
    return {name[len(prefix) :]: each for name, each in stored.items() if name.startswith(prefix)}


def _write_weights(
    path: Path, reader: LayerReader, spec: ModelSpec, scheme: Scheme, ranges: LayerRanges
) -> LayerConstants:
    constants = LayerConstants(path.name, {}, {}, {})
    write_kept(path, _placed(constants.stored, _weights(reader, spec, scheme, ranges, constants)))
    return constants


@dataclass(frozen=True, eq=False)
class _Constant:
    """To be stored."""

    name: str
    type: str  # of onnx.TensorProto
    shape: tuple[int, ...]
    data: NDArray[Any]


def _placed(stored: dict[str, Stored], constants: Iterable[_Constant]) -> Iterator[bytes | memoryview]:
    """A file's pieces, page-aligned; tells `stored` where each constant lies."""
    end = 0
    for each in constants:
        gap = -end % _PAGE
        stored[each.name] = Stored(each.type, each.shape, end + gap, each.data.nbytes)
        end += gap + each.data.nbytes
        yield bytes(gap)
        yield np.ascontiguousarray(each.data).data


def _weights(
    reader: LayerReader, spec: ModelSpec, scheme: Scheme, ranges: LayerRanges, constants: LayerConstants
) -> Iterator[_Constant]:
    """A layer's, one by one; small vectors and factors go to `constants`."""
    vectors = constants.vectors
    for product in products_of(spec, reader.layer).values():
        norm = reader.norm(product)
        if norm is not None:
            vectors[product.norm] = norm
        if product.post_norm:
            weight = reader.vector(product.post_norm)
            assert weight is not None
            vectors[product.post_norm] = weight
        for part in product.parts:
            key, made = f"{product.name}.{part.out}", reader.part(product, part)
            if made.bias is not None:
                vectors[f"{key}.bias"] = made.bias
            if made.scale != 1.0:
                constants.factors[key] = made.scale
            yield from _narrowed(key, made, scheme)
            outliers = ranges.outliers.get(product.name)
            if outliers:  # what is cut off of them is large: a narrow weight's error would be, too
                exact = np.ascontiguousarray(made.matrix[list(outliers)])
                yield _Constant(f"{key}.exact", "FLOAT", exact.shape, exact)


def _narrowed(key: str, part: PartWeights, scheme: Scheme) -> Iterator[_Constant]:
    shape = part.matrix.shape
    if scheme.weights == "f32":
        yield _Constant(key, "FLOAT", shape, part.matrix)
    elif scheme.weights == "f16":
        yield _Constant(key, "FLOAT16", shape, part.matrix.astype(np.float16))
    else:
        block = scheme.block if scheme.block and shape[0] % scheme.block == 0 else 0
        if scheme.weights == "i4" and block == 32 and part.q4_0 is not None:
            integers, scale = same_nibbles(part.q4_0)
        else:
            integers, scale = narrow(part.matrix, scheme.bits, block)
        if scheme.weights in ("i8", "i7"):
            yield _Constant(key, "INT8", shape, integers)
        else:
            yield _Constant(key, "INT4", shape, pack_nibbles(integers))
        yield _Constant(f"{key}.scale", "FLOAT", scale.shape, scale)
