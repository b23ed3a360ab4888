"""Attention with a narrow way around it (LAuReL, Menghani et al. 2024, as in Gemma 3n): what its norm gave, itself and
through two matrices of a small rank, is averaged with what attention did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgerun.kernels.interface import F32
from edgerun.kv import KvLayer
from edgerun.models.blocks.attention import Attention
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Product, Reduction, Tensor
from edgerun.models.places import Places
from edgerun.models.scratch import Layout, Role, Scratch, Take

_NORM = "laurel_post_norm"


@dataclass(frozen=True)
class LaurelLayout:
    """Two buffers, (T, rank) and (T, d)."""

    rank: int
    d_model: int
    role: Role = "recurrence"  # which models with a way around attention do not have

    @property
    def widths(self) -> tuple[int, ...]:
        return self.rank, self.d_model

    def make(self, rows: int, take: Take) -> tuple[F32, F32]:
        return take(self.rank), take(self.d_model)


@dataclass(frozen=True)
class Laurel:
    """x = (x + attention(h) + h + norm(laurel_r @ laurel_l @ h)) / sqrt(2), of h = the attention's norm of x."""

    attention: Attention
    rank: int
    d_model: int

    state = None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        d, rank = self.d_model, self.rank
        mine = {"laurel_l": Tensor((rank, d)), "laurel_r": Tensor((d, rank)), _NORM: Tensor((d,))}
        return {**self.attention.tensors, **mine}

    @property
    def kv(self) -> KvLayer | None:
        return self.attention.kv

    @property
    def keys_and_values(self) -> KvLayer:
        """What it reads of a position."""
        return self.attention.keys_and_values

    @property
    def products(self) -> tuple[Product, ...]:
        """None that a prompt backend could compute."""
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.attention.sums

    @property
    def floats(self) -> int:
        return self.attention.floats + 2 * sum(self.layout.widths)

    @cached_property
    def layout(self) -> LaurelLayout:
        """Of its own buffers."""
        return LaurelLayout(self.rank, self.d_model)

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        return *self.attention.layouts, self.layout

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        kernels, matrices, vectors, eps = here.kernels, here.weights.matrices, here.vectors, self.attention.eps
        narrow, around = s.of(self.layout)
        kernels.rms_norm(x, vectors[self.attention.qkv.norm], eps, s.h)
        kernels.matmul(matrices["laurel_l"], kernels.activations(s.h), narrow)
        kernels.matmul(matrices["laurel_r"], kernels.activations(narrow), around)
        kernels.rms_norm(around, vectors[_NORM], eps, around)
        kernels.add(around, s.h)
        self.attention.forward(here, x, places, s)
        kernels.add(x, around)
        kernels.scale(x, 2**-0.5)
