"""What a layer's norms are: of a product's input, of its result, of the router's input."""

from __future__ import annotations

from edgerun.kernels.interface import F32, Kernels
from edgerun.models.blocks.declared import Product
from edgerun.models.families import NormKind


def apply_norm(
    kernels: Kernels, vectors: dict[str, F32], name: str, kind: NormKind, eps: float, x: F32, out: F32
) -> None:
    """out (T, d) = x through the norm `name`, with the bias that the file may have; `out` may be x."""
    bias = vectors.get(f"{name}.bias")
    if kind == "layer":
        kernels.layer_norm(x, vectors[name], bias, eps, out)
        return
    kernels.rms_norm(x, vectors[name], eps, out)
    if bias is not None:
        kernels.add(out, bias)


def product_input(kernels: Kernels, vectors: dict[str, F32], product: Product, x: F32, out: F32) -> F32:
    """What the product is of: x through its norm, in `out`; x itself where there is none."""
    if not product.norm:
        return x
    apply_norm(kernels, vectors, product.norm, product.norm_kind, product.eps, x, out)
    return out
