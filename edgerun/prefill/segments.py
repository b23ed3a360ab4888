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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgerun.errors import UnsupportedError
from edgerun.models import ModelSpec
from edgerun.models.blocks.attention import Attention
from edgerun.models.blocks.declared import Product, ProductName
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.plan import plan_of
from edgerun.prefill.schemes import Scheme


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
    reason = why_unsupported(spec)
    if reason:
        raise UnsupportedError(
            f"prompt backends cannot compute this {spec.architecture}: {reason}; use --prefill kernels"
        )
    reason = why_no_experts(spec) if experts else ""
    if reason:
        raise UnsupportedError(
            f"prompt backends cannot compute the experts of this {spec.architecture}: {reason}; leave out :experts"
        )


def why_unsupported(spec: ModelSpec) -> str:
    """What of a model's layers the graphs do not have, for people; "": nothing."""
    family, plans = spec.family, plan_of(spec)
    if any(layer.latent is not None for layer in spec.layers):
        return "there are no graphs for latent attention"
    if any(layer.recurrence is not None or layer.conv_taps for layer in spec.layers):
        return "there are no graphs for recurrent layers or short convolutions"
    attentions = [plan.mixer for plan in plans if isinstance(plan.mixer, Attention)]
    if len(attentions) < len(plans):
        return "there are no graphs for layers with more, or less, than attention and a feed-forward"
    if any(each.gate is not None for each in attentions):
        return "there are no graphs for attention whose output is gated"
    if any(each.has_more for each in attentions):
        return "there are no graphs for layers that lack keys or values of their own"
    if any(plan.closing is not None for plan in plans):
        return "its layers end with more than a feed-forward"
    if spec.sparse:
        return "graphs compute all neurons of a sparse feed-forward, not those that fire"
    if family.norm != "rms" or any(name.endswith("_norm.bias") for name in spec.tensors):
        return "there are no graphs for LayerNorms or norms with biases yet"
    if not family.pre_norms or family.parallel:
        return "there are no graphs for layers without a norm before each half yet"
    if spec.residual_scale != 1.0 or family.post_norm_eps:
        return "there are no graphs for scaled residuals or norms of their own precision yet"
    if any(plan.mixture is None for plan in plans) and (not family.gated or spec.activation == "oai"):
        return f"there are no graphs for feed-forwards without gates, or with {spec.activation} yet"
    return ""


def why_no_experts(spec: ModelSpec) -> str:
    """What keeps graphs from computing a model's experts too, for people; "": nothing."""
    if not spec.n_experts:
        return "it has none"
    plain = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    if any(not _are_plain(plan.mixture, spec, plain) for plan in plan_of(spec) if plan.mixture):
        return "they are not three plain matrices"
    return ""


def _are_plain(mixture: Mixture, spec: ModelSpec, parts: set[str]) -> bool:
    """Whether experts are three matrices of d_model with nothing beside them."""
    beside = any(f".{part}." in name and not name.endswith(".weight") for name in spec.tensors for part in parts)
    own = mixture.latent or mixture.weighted_inputs or mixture.activation == "oai"
    return parts <= mixture.tensors.keys() and not own and not beside


def products_of(spec: ModelSpec, layer: int) -> dict[ProductName, Product]:
    """In the order of the layer."""
    return plan_of(spec)[layer].products


def expert_products(spec: ModelSpec, layer: int) -> dict[ProductName, Product]:
    """Of every expert of a layer; none where there are no experts."""
    mixture = plan_of(spec)[layer].mixture
    return {} if mixture is None else {each.name: each for each in mixture.expert_products}


def segments_of(spec: ModelSpec, layer: int, shadowed: Iterable[ProductName] = ()) -> tuple[Segment, list[Segment]]:
    """The graphs of both halves of a layer. The first gives its product's results: their shadow needs no cut."""
    alone = set(shadowed)
    out: list[Segment] = []
    together: list[ProductName] = []
    for name in list(products_of(spec, layer))[1:]:
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
    parts = [weights for layer in range(spec.n_layers) for weights in _weights(products_of(spec, layer))]
    return 2 * weights_bytes(spec, scheme) // spec.n_layers + 5 * max(parts) + (64 << 20)


def weights_bytes(spec: ModelSpec, scheme: Scheme, *, experts: bool = False) -> int:
    """Of all layers' products, and their experts', without their scales."""
    weights = 0
    for layer in range(spec.n_layers):
        weights += sum(_weights(products_of(spec, layer)))
        if experts:
            weights += spec.layers[layer].n_experts * sum(_weights(expert_products(spec, layer)))
    return weights * (8 if scheme.bits == 7 else scheme.bits) // 8


def _weights(products: Mapping[ProductName, Product]) -> list[int]:
    """How many each part has."""
    return [product.cols * part.rows for product in products.values() for part in product.parts]
