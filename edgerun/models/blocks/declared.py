"""What blocks declare: tensors and products. From these shapes are checked, memory and speed
are planned, scratch is laid out, and prompt backends draw their graphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from edgerun.models.families import NormKind
from edgerun.models.spec import Units

ProductName = Literal[
    "qkv",
    "q",
    "kv",
    "o",
    "gate",
    "gate_up",
    "down",
    "expert_in",
    "expert_down",
    "mixer_in",
    "mixer_out",
    "layer_in",
    "layer_out",
]


class Reduction(NamedTuple):
    """One sum over ranks: of how many `numbers`, and of how many `units` it is made; 0: of none."""

    numbers: int
    units: int = 0


@dataclass(frozen=True)
class Tensor:
    """One that a layer has. `times`: how many of its matrices a token is multiplied with."""

    shape: tuple[int, ...]
    needed: bool = True
    times: float = 1.0


@dataclass(frozen=True)
class Part:
    """One result of a product: rows [first, first + rows) of a tensor."""

    out: str
    tensor: str
    first: int
    rows: int


@dataclass(frozen=True)
class Product:
    """Products of one input (tokens, cols). `norm`: the norm that the input goes through first, of `norm_kind`;
    `post_norm`: the RMSNorm of the result, before it is added to x; `eps` of both, but for a `post_eps`. whole_cols: of
    an input whose columns several ranks divided, all of them; 0: it is whole. factor: of what is added to x. units: of
    its columns, which its one matrix holds one below the other: the rows of the first unit, then those of the next."""

    name: ProductName
    cols: int
    parts: tuple[Part, ...]
    norm: str = ""
    post_norm: str = ""
    eps: float = 1e-5
    whole_cols: int = 0
    norm_kind: NormKind = "rms"
    post_eps: float = 0.0
    factor: float = 1.0
    units: Units | None = None

    @cached_property
    def rows_of(self) -> dict[str, int]:
        """Rows of each tensor, in the order of the parts."""
        rows: dict[str, int] = {}
        for part in self.parts:
            rows[part.tensor] = rows.get(part.tensor, 0) + part.rows
        return rows

    @property
    def rows(self) -> int:
        """Of all parts together."""
        return sum(part.rows for part in self.parts)

    @property
    def sums(self) -> tuple[Reduction, ...]:
        """Over ranks that divided its columns, for a row: of the squares of a norm that goes over all of these, if
        there is one, and of the result."""
        count = 0 if self.units is None else self.units.count
        return (*(Reduction(1, count) for _ in range(bool(self.norm))), Reduction(self.rows, count))

    @property
    def unit_floats(self) -> int:
        """Of the buffer that a row's results of units need."""
        return 0 if self.units is None else len(self.units.held) * self.rows


def product_tensors(*products: Product) -> dict[str, Tensor]:
    """Their matrices and norms, and the bias and the factor that a file may have of each."""
    found: dict[str, Tensor] = {}
    for product in products:
        if product.norm:
            found |= norm_tensors(product.norm, product.cols)
        for name, rows in product.rows_of.items():
            stacked = 1 if product.units is None else max(1, len(product.units.held))
            found[name] = Tensor((stacked * rows, product.cols // stacked))
            found |= {f"{name}.bias": Tensor((rows,), False), f"{name}.scale": Tensor((1,), False)}
        if product.post_norm:
            found |= norm_tensors(product.post_norm, product.rows)
    return found


def norm_tensors(name: str, cols: int) -> dict[str, Tensor]:
    """A norm's weights, and the bias that a file may have."""
    bias = {} if name.endswith(".") else {f"{name}.bias": Tensor((cols,), False)}
    return {name: Tensor((cols,)), **bias}
