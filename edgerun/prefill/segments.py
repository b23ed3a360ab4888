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
    if experts and not spec.n_experts:
        raise UnsupportedError(f"this {spec.architecture} model has no experts: leave out :experts")
    if any(not isinstance(layer.mixer, Attention) for layer in plan_of(spec)):
        raise UnsupportedError(
            f"prompt backends have no graphs for layers without attention or with more ({spec.architecture}): use "
            "--prefill kernels"
        )
    if any(isinstance(layer.mixer, Attention) and layer.mixer.has_more for layer in plan_of(spec)):
        raise UnsupportedError(
            f"prompt backends do not know the attention of a {spec.architecture}, which has gates or shares keys and "
            "values: use --prefill kernels"
        )
    if any(layer.closing is not None for layer in plan_of(spec)):
        raise UnsupportedError(
            f"prompt backends do not know how layers of a {spec.architecture} end: use --prefill kernels"
        )
    if spec.sparse:
        raise UnsupportedError(
            "prompt backends compute all neurons of a sparse feed-forward, not those that fire: use --prefill kernels"
        )
    foreign = _foreign(spec)
    if foreign:
        raise UnsupportedError(f"prompt backends cannot compute {foreign} yet: use --prefill kernels")
    plain = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    if experts and any(not _are_plain(plan.mixture, spec, plain) for plan in plan_of(spec) if plan.mixture):
        raise UnsupportedError("prompt backends cannot compute experts like this model's yet: leave out :experts")


def _foreign(spec: ModelSpec) -> str:
    """What of a model's layers the graphs do not have, for people; "": nothing."""
    family = spec.family
    if family.norm != "rms" or any(name.endswith("_norm.bias") for name in spec.tensors):
        return "LayerNorms or norms with biases"
    if not family.pre_norms or family.parallel:
        return "layers without a norm before each half"
    if spec.residual_scale != 1.0 or family.post_norm_eps:
        return "scaled residuals or norms of their own precision"
    if any(plan.mixture is None for plan in plan_of(spec)) and (not family.gated or spec.activation == "oai"):
        return f"feed-forwards without gates, or with {spec.activation}"
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
