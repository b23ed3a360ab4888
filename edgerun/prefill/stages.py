"""What of a layer a prompt backend computes, drawn as products with what lies around them.

A layer has two halves with attention between them, which always stays in our CPU kernels:

    in     x -> norm -> q, k, v
    out    o -> [norm] -> output -> [norm] + x;  x -> norm -> gate, up -> activation;  h -> [norm] -> down -> [norm] + x

Each half is one static graph, unless a product is *shadowed*: its input must then be known on the CPU, which adds what
the graph's narrow integers cut off, so the graph is cut before and after that product. A mixture's layer ends with the
attention's output; its experts are graphs of their own where they are wanted, one for each, of the rows routed to it:

    expert   h -> gate, up -> activation -> down -> t
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgerun.errors import UnsupportedError
from edgerun.models import ModelSpec
from edgerun.prefill.schemes import Scheme

ProductName = Literal["qkv", "o", "gate_up", "down", "expert_in", "expert_down"]


@dataclass(frozen=True)
class Part:
    """One result of a product: rows [first, first + rows) of a tensor."""

    out: str
    tensor: str
    first: int
    rows: int


@dataclass(frozen=True)
class Product:
    """Products of one input (tokens, cols). `norm`: the RMSNorm vector that the input goes through first;
    `post_norm`: of the result, before it is added to x."""

    name: ProductName
    cols: int
    parts: tuple[Part, ...]
    norm: str = ""
    post_norm: str = ""


@dataclass(frozen=True)
class Segment:
    """Products that one graph computes in a row. `raw`: it stops at the product itself."""

    products: tuple[ProductName, ...]
    raw: bool = False

    @property
    def name(self) -> str:
        """For files and messages."""
        return "-".join(self.products) + ("-raw" if self.raw else "")

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it is fed: x (tokens, d) is the residual stream, o attention's result, h the activated feed-forward."""
        first = self.products[0]
        if first in ("qkv", "gate_up", "expert_in"):
            return ("x",)
        own = "o" if first == "o" else "h"
        return (own,) if self.raw else (own, "x")

    @property
    def outputs(self) -> tuple[str, ...]:
        """What comes out. After "gate_up" x is still needed, and comes out too where it was made inside."""
        last = self.products[-1]
        if last == "qkv":
            return ("q", "k", "v")
        if self.raw:
            return ("gate", "up") if last == "gate_up" else ("t",)
        if last == "gate_up":
            return ("h", "x_out") if len(self.products) > 1 else ("h",)
        return ("x_out",)


EXPERT = Segment(("expert_in", "expert_down"), raw=True)


def check_supported(spec: ModelSpec, *, experts: bool = False) -> None:
    """UnsupportedError for models whose layers are not such products, or that have no `experts`."""
    if experts and not spec.n_experts:
        raise UnsupportedError(f"this {spec.architecture} model has no experts: leave out :experts")
    if spec.sparse:
        raise UnsupportedError(
            "prompt backends compute all neurons of a sparse feed-forward, not those that fire: use --prefill kernels"
        )


def products_of(spec: ModelSpec) -> dict[ProductName, Product]:
    """In the order of the layer."""
    family, d = spec.family, spec.d_model
    q, k = spec.n_heads * spec.head_dim_k, spec.n_kv_heads * spec.head_dim_k
    v, o = spec.n_kv_heads * spec.head_dim_v, spec.n_heads * spec.head_dim_v
    if family.fused_qkv:
        qkv = (Part("q", "attn_qkv", 0, q), Part("k", "attn_qkv", q, k), Part("v", "attn_qkv", q + k, v))
    else:
        qkv = (Part("q", "attn_q", 0, q), Part("k", "attn_k", 0, k), Part("v", "attn_v", 0, v))
    post = ("post_attention_norm", "post_ffw_norm") if family.post_norms else ("", "")
    sub = ("attn_sub_norm", "ffn_sub_norm") if family.sub_norms else ("", "")
    found: dict[ProductName, Product] = {
        "qkv": Product("qkv", d, qkv, "attn_norm"),
        "o": Product("o", o, (Part("t", "attn_output", 0, d),), sub[0], post[0]),
    }
    if spec.n_experts:
        return found
    ff = spec.d_ff
    if family.fused_gate_up:
        gate_up = (Part("gate", "ffn_up", 0, ff), Part("up", "ffn_up", ff, ff))
    else:
        gate_up = (Part("gate", "ffn_gate", 0, ff), Part("up", "ffn_up", 0, ff))
    found["gate_up"] = Product("gate_up", d, gate_up, "ffn_norm")
    found["down"] = Product("down", ff, (Part("t", "ffn_down", 0, d),), sub[1], post[1])
    return found


def expert_products(spec: ModelSpec) -> dict[ProductName, Product]:
    """Of every expert of a mixture; none for other models. Its input comes normed."""
    if not spec.n_experts:
        return {}
    d, ff = spec.d_model, spec.d_ff_expert
    gate_up = (Part("gate", "ffn_gate_exps", 0, ff), Part("up", "ffn_up_exps", 0, ff))
    return {
        "expert_in": Product("expert_in", d, gate_up),
        "expert_down": Product("expert_down", ff, (Part("t", "ffn_down_exps", 0, d),)),
    }


def segments_of(spec: ModelSpec, shadowed: Iterable[ProductName] = ()) -> tuple[Segment, list[Segment]]:
    """The graphs of both halves of a layer. The first gives its product's results: their shadow needs no cut."""
    alone = set(shadowed)
    out: list[Segment] = []
    together: list[ProductName] = []
    for name in list(products_of(spec))[1:]:
        if name in alone:
            if together:
                out.append(Segment(tuple(together)))
                together = []
            out.append(Segment((name,), raw=True))
        else:
            together.append(name)
    if together:
        out.append(Segment(tuple(together)))
    return Segment(("qkv",)), out


def scratch_bytes(spec: ModelSpec, scheme: Scheme) -> int:
    """What building the graphs of a layer takes at a time, and what running one takes that is mapped: its weights
    twice, the largest part in f32, and activations."""
    parts = [product.cols * part.rows for product in products_of(spec).values() for part in product.parts]
    return 2 * weights_bytes(spec, scheme) // spec.n_layers + 5 * max(parts) + (64 << 20)


def weights_bytes(spec: ModelSpec, scheme: Scheme, *, experts: bool = False) -> int:
    """Of all layers' products, and their experts', without their scales."""
    weights = sum(product.cols * part.rows for product in products_of(spec).values() for part in product.parts)
    if experts:
        each = sum(product.cols * part.rows for product in expert_products(spec).values() for part in product.parts)
        weights += spec.n_experts * each
    return spec.n_layers * weights * (8 if scheme.bits == 7 else scheme.bits) // 8
