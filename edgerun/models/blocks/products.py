"""Products of activations with a layer's matrices, and what lies around them: a norm before, factors, biases, a norm
after."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgerun.kernels.interface import F32, Kernels
from edgerun.models.blocks.base import Cancel, Here
from edgerun.models.blocks.declared import Product
from edgerun.models.blocks.norms import apply_norm, product_input
from edgerun.models.blocks.sums import norm_over_ranks, sum_of_units, sum_over_ranks
from edgerun.models.scratch import Scratch, Take


class Results:
    """Buffers of a product's results for T rows: `parts` by their names, `tensors` by their matrices.

    Of one row all lie side by side, so that there is nothing to take apart when a matrix fills several parts."""

    def __init__(self, product: Product, rows: int, take: Take) -> None:
        self.whole = take(product.rows) if rows == 1 else None  # (1, all parts)
        self.parts: dict[str, F32] = {}
        self.tensors: dict[str, F32] = {}
        self.apart: list[tuple[F32, F32]] = []  # (part, where in its tensor's result it is copied from)
        low = 0
        for tensor, tensor_rows in product.rows_of.items():
            mine = [part for part in product.parts if part.tensor == tensor]
            if self.whole is not None:
                result = self.whole[:, low : low + tensor_rows]
                self.parts |= {part.out: result[:, part.first : part.first + part.rows] for part in mine}
            else:
                result = take(tensor_rows)
                if len(mine) == 1:
                    self.parts[mine[0].out] = result
                else:
                    self.apart += [(take(part.rows), result[:, part.first : part.first + part.rows]) for part in mine]
                    self.parts |= {part.out: to for part, (to, _) in zip(mine, self.apart, strict=True)}
            self.tensors[tensor] = result
            low += tensor_rows


def widths_of(product: Product) -> tuple[int, ...]:
    """Of the buffers that `Results` takes for several rows."""
    parts = tuple(part.rows for part in product.parts)
    return parts if len(product.rows_of) == len(parts) else (*parts, product.rows)


def multiply(here: Here, product: Product, inner: F32, out: Results) -> None:
    """All parts of the product of inner (T, cols), normed already, with their factors and biases."""
    kernels, weights = here.kernels, here.weights
    matrices = [weights.matrices[name] for name in out.tensors]
    kernels.matmul_many(matrices, kernels.activations(inner), list(out.tensors.values()))
    if here.watch is not None:
        raw = {p.out: out.tensors[p.tensor][:, p.first : p.first + p.rows].copy() for p in product.parts}
        here.watch(here.layer, product.name, inner.copy(), raw)
    for name, result in out.tensors.items():
        scale_and_bias(here, name, result)
    if out.apart:
        here.cut(partial(_take_apart, out.apart))


def _take_apart(apart: list[tuple[F32, F32]], cancelled: Cancel, rows: int) -> None:
    for part, view in apart:
        part[:] = view


def add_product(here: Here, product: Product, inner: F32, x: F32, s: Scratch) -> None:
    """x (T, d) += the product of inner (T, cols), through the norms, factor and bias that the model has. Overwrites
    `inner` where a norm comes first."""
    kernels, vectors = here.kernels, here.vectors
    (part,) = product.parts
    if product.norm:
        norm_over_ranks(here, [(inner, vectors[product.norm], product.whole_cols)], product.eps, product.units)
    if product.units is not None:
        sum_of_units(here, product.units, unit_results(here, product, inner, s), s.t)
        scale_and_bias(here, part.tensor, s.t)
        add_result(kernels, vectors, product, s.t, x)
        return
    rows, matrix, t = kernels.activations(inner), here.weights.matrices[part.tensor], s.t
    plain = part.tensor + ".scale" not in vectors and part.tensor + ".bias" not in vectors
    plain = plain and not product.post_norm and product.factor == 1.0
    if plain and here.watch is None and here.tools.ranks is None:
        kernels.matmul(matrix, rows, x, add=True)
        return
    kernels.matmul(matrix, rows, t)
    sum_over_ranks(here, t)
    if here.watch is not None:
        here.watch(here.layer, product.name, inner.copy(), {part.out: t.copy()})
    scale_and_bias(here, part.tensor, t)
    add_result(kernels, vectors, product, t, x)


def unit_results(here: Here, product: Product, inner: F32, s: Scratch) -> list[F32]:
    """Of each of the rank's units its columns' part of the product of inner (T, cols): (T, d) each, lent until the next
    call."""
    assert product.units is not None  # by whoever asks
    (part,), held = product.parts, len(product.units.held)
    results = s.parts(held)  # (T, units, d)
    by_unit = inner.reshape(len(inner) * held, -1)  # a view, as what is recorded needs it: rows lie side by side
    here.kernels.matmul_heads(here.weights.matrices[part.tensor], here.kernels.activations(by_unit), results)
    return [results[:, unit] for unit in range(held)]


def add_result(kernels: Kernels, vectors: dict[str, F32], product: Product, t: F32, x: F32) -> None:
    """x += t, through the norm after the product if it has one, times its factor; t is overwritten."""
    if product.post_norm:
        apply_norm(kernels, vectors, product.post_norm, "rms", product.post_eps or product.eps, t, t)
    if product.factor != 1.0:
        kernels.scale(t, product.factor)
    kernels.add(x, t)


def normed(kernels: Kernels, vectors: dict[str, F32], product: Product, inner: F32) -> F32:
    """A product's input after its norm, if it has one: a new array, or `inner`."""
    return product_input(kernels, vectors, product, np.ascontiguousarray(inner), np.empty_like(inner))


def scale_and_bias(here: Here, name: str, out: F32) -> None:
    """What a file may have beside the matrix `name`."""
    scale = here.vectors.get(name + ".scale")
    if scale is not None:
        here.kernels.scale(out, float(scale[0]))
    bias = here.vectors.get(name + ".bias")
    if bias is not None:
        here.kernels.add(out, bias)
