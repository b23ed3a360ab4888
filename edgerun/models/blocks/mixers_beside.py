"""Two mixers side by side on one norm (Falcon-H1, TII 2025): attention, and Mamba-2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgerun.kernels.interface import F32
from edgerun.kv import KvLayer, StateLayer
from edgerun.models.blocks.attention import Attention
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Product, Reduction, Tensor
from edgerun.models.blocks.mamba import Mamba
from edgerun.models.blocks.products import add_product, multiply
from edgerun.models.places import Places
from edgerun.models.scratch import Layout, Scratch


@dataclass(frozen=True)
class MixersBeside:
    """x += attention(norm(x)) + mamba(norm(x))."""

    attention: Attention
    mamba: Mamba

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.attention.tensors, **self.mamba.tensors}

    @property
    def kv(self) -> KvLayer | None:
        return self.attention.kv

    @property
    def state(self) -> StateLayer:
        return self.mamba.state

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.attention.sums + self.mamba.sums

    @property
    def floats(self) -> int:
        return self.attention.floats + self.mamba.floats

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        return *self.attention.layouts, *self.mamba.layouts

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        attention, mamba = self.attention, self.mamba
        b = s.of(attention.layout)
        here.kernels.rms_norm(x, here.vectors[attention.qkv.norm], attention.eps, s.h)
        multiply(here, attention.qkv, s.h, b.qkv)
        mamba.scan(here, s.h, places, s)
        attention.attend(here, places, b)
        add_product(here, attention.output, b.o, x, s)
        add_product(here, mamba.output, s.of(mamba.layout).o_rows, x, s)
