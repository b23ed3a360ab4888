"""ONNX graphs of a layer's segments, static or with a free number of tokens.

Opset 21: QuantizeLinear of 16 bits, DequantizeLinear of int4 and of blocks. A narrow product is drawn as providers
look for it: Q, DQ of the activations, DQ of the weights (constants beside the graph, one file a layer), MatMul, and
where the scheme says so Q, DQ of the result. Norms, activations and residuals are f32. No control flow, no shapes that
depend on values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.models import ModelSpec
from edgerun.models.blocks.declared import Part, Product, ProductName
from edgerun.prefill.schemes import Scheme
from edgerun.prefill.segments import Segment, expert_products, products_of

OPSET, IR_VERSION = 21, 10
Range = tuple[float, float]


@dataclass(frozen=True)
class Stored:
    """A constant in the layer's weight file."""

    type: str  # of onnx.TensorProto
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class LayerConstants:
    """Where a layer's constants lie: `stored` by "PRODUCT.OUT" and "PRODUCT.OUT.scale", small vectors by name."""

    file: str
    stored: dict[str, Stored]
    vectors: dict[str, NDArray[np.float32]]
    factors: dict[str, float]


def build_graph(
    spec: ModelSpec,
    layer: int,
    segment: Segment,
    scheme: Scheme,
    constants: LayerConstants,
    ranges: Mapping[str, Range],
    tokens: int | None,
) -> bytes:
    """A serialised ModelProto. `ranges`: of every product's input, by the product's name, and where results are
    rounded "PRODUCT.OUT"; `tokens` None: any number."""
    import onnx

    g = _Graph(scheme, constants, ranges)
    products = {**products_of(spec, layer), **expert_products(spec, layer)}
    widths = {"x": spec.d_model, "o": products["o"].cols, "h": spec.layers[layer].d_ff}
    stream = "x"
    value = segment.inputs[0]
    for name in segment.products:
        value = stream if name in ("qkv", "gate_up", "expert_in") else value
        results = _product(g, spec, products[name], value)
        raw = segment.raw and name == segment.products[-1]
        if raw or name == "qkv":
            for part in products[name].parts:
                g.rename(results[part.out], part.out)
        elif name in ("gate_up", "expert_in"):
            value = _activated(g, spec, results["gate"], results["up"])
        else:
            added = results["t"]
            if products[name].post_norm:
                added = g.rms_norm(added, products[name].post_norm, spec.norm_eps)
            stream = value = g.node("Add", stream, added)
    if not segment.raw and segment.products[-1] != "qkv":
        if "h" in segment.outputs:
            g.rename(value, "h")
        if "x_out" in segment.outputs:
            g.rename(stream, "x_out")
    rows = "tokens" if tokens is None else tokens
    kind = onnx.TensorProto.FLOAT
    widths |= {part.out: part.rows for each in segment.products for part in products[each].parts}
    widths["x_out"] = spec.d_model
    graph = onnx.helper.make_graph(
        g.nodes,
        segment.name,
        [onnx.helper.make_tensor_value_info(name, kind, [rows, widths[name]]) for name in segment.inputs],
        [onnx.helper.make_tensor_value_info(name, kind, [rows, widths[name]]) for name in segment.outputs],
        g.initializers,
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgerun"
    )
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants while they are put together."""

    def __init__(self, scheme: Scheme, constants: LayerConstants, ranges: Mapping[str, Range]) -> None:
        self.scheme = scheme
        self.constants = constants
        self.ranges = ranges
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: set[str] = set()

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One more; returns the name of its result."""
        import onnx

        out = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [out], name=out, **attributes))
        return out

    def rename(self, value: str, to: str) -> None:
        """Call a result what the graph's output is called."""
        for node in self.nodes:
            node.input[:] = [to if each == value else each for each in node.input]
            node.output[:] = [to if each == value else each for each in node.output]

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """A small one, in the graph itself; the same name is the same constant."""
        import onnx

        if name not in self._names:
            self._names.add(name)
            self.initializers.append(onnx.numpy_helper.from_array(values, name))
        return name

    def stored(self, name: str) -> str:
        """One from the layer's file."""
        import onnx

        if name not in self._names:
            self._names.add(name)
            found = self.constants.stored[name]
            tensor = onnx.TensorProto(
                name=name,
                data_type=getattr(onnx.TensorProto, found.type),
                dims=found.shape,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            for key, value in (("location", self.constants.file), ("offset", found.offset), ("length", found.n_bytes)):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            self.initializers.append(tensor)
        return name

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        """x / sqrt(mean(x^2) + eps) * weight, as optimisers know it."""
        squared = self.node("Pow", x, self.constant("two", np.array(2.0, np.float32)))
        mean = self.node("ReduceMean", squared, self.constant("last_axis", np.array([-1], np.int64)), keepdims=1)
        root = self.node("Sqrt", self.node("Add", mean, self.constant("eps", np.array(eps, np.float32))))
        return self.node("Mul", self.node("Div", x, root), self.constant(weight, self.constants.vectors[weight]))

    def rounded(self, x: str, key: str, kind: str) -> str:
        """x through Q and DQ: one scale and zero point for the tensor."""
        low, high = self.ranges[key]
        dtype = np.uint8 if kind == "u8" else np.uint16
        scale, zero = grid(low, high, 8 if kind == "u8" else 16)
        names = (
            self.constant(f"{key}.step", np.array(scale, np.float32)),
            self.constant(f"{key}.zero", np.array(zero, dtype)),
        )
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *names), *names)

    def weight(self, key: str) -> str:
        """(cols, rows) as MatMul takes it."""
        scheme = self.scheme
        if scheme.weights in ("f32", "f16"):
            return self.stored(key)
        scale = self.stored(f"{key}.scale")
        stored = self.constants.stored[key]
        zero = self.zero(stored.type, self.constants.stored[f"{key}.scale"].shape, key)
        if len(self.constants.stored[f"{key}.scale"].shape) == 2:
            return self.node("DequantizeLinear", self.stored(key), scale, zero, axis=0, block_size=scheme.block)
        return self.node("DequantizeLinear", self.stored(key), scale, zero, axis=1)

    def zero(self, type: str, shape: tuple[int, ...], key: str) -> str:
        """Zero points, all 0: some providers want them written."""
        import onnx

        name = f"{key}.zero_point"
        if name not in self._names:
            self._names.add(name)
            count = int(np.prod(shape))
            n_bytes = count if type == "INT8" else -(-count // 2)
            tensor = onnx.TensorProto(
                name=name, data_type=getattr(onnx.TensorProto, type), dims=shape, raw_data=bytes(n_bytes)
            )
            self.initializers.append(tensor)
        return name


def grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of unsigned integers that cover [low, high] and 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    most = (1 << bits) - 1
    scale = float(np.float32(max(high - low, 1e-9) / most))
    return scale, round(-low / scale)


def _product(g: _Graph, spec: ModelSpec, product: Product, value: str) -> dict[str, str]:
    """Results by the names of its parts."""
    scheme = g.scheme
    if product.norm:
        value = g.rms_norm(value, product.norm, spec.norm_eps)
    if scheme.quantises_activations:
        value = g.rounded(value, product.name, scheme.activations)
    elif scheme.activations == "f16":
        value = g.node("Cast", value, to=10)
    return {part.out: _part(g, product.name, part, value) for part in product.parts}


def _part(g: _Graph, product: ProductName, part: Part, value: str) -> str:
    scheme, key = g.scheme, f"{product}.{part.out}"
    result = g.node("MatMul", value, g.weight(key))
    if scheme.activations == "f16":
        result = g.node("Cast", result, to=1)
    if scheme.results != "f32":
        result = g.rounded(result, key, scheme.results)
    factor = g.constants.factors.get(key, 1.0)
    if factor != 1.0:
        result = g.node("Mul", result, g.constant(f"{key}.factor", np.array(factor, np.float32)))
    if f"{key}.bias" in g.constants.vectors:
        result = g.node("Add", result, g.constant(f"{key}.bias", g.constants.vectors[f"{key}.bias"]))
    return result


def _activated(g: _Graph, spec: ModelSpec, gate: str, up: str) -> str:
    if spec.activation == "silu":
        gate = g.node("Mul", gate, g.node("Sigmoid", gate))
    elif spec.activation == "gelu":
        gate = g.node("Gelu", gate, approximate="tanh")
    else:
        gate = g.node("Relu", gate)
        if spec.activation == "relu2":
            gate = g.node("Mul", gate, gate)
    return g.node("Mul", gate, up)
