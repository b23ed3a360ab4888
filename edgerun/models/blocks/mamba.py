"""Mamba-2 (Dao and Gu 2024): each head keeps a matrix that fades, and adds to it what every position says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32
from edgerun.kv import StateLayer
from edgerun.models.blocks.absent import AbsentMixer
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.products import Results, add_product, multiply, widths_of
from edgerun.models.places import Places
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec, Recurrence


@dataclass(frozen=True)
class MambaLayout:
    """Of `MambaBuffers`."""

    inner: Product
    heads: Recurrence
    role: Role = "recurrence"

    @property
    def widths(self) -> tuple[int, ...]:
        n = self.heads
        return (*widths_of(self.inner), n.heads, n.heads, n.inner)

    def make(self, rows: int, take: Take) -> MambaBuffers:
        return MambaBuffers(self, rows, take)


class MambaBuffers:
    """inner: the product's result, in which lie gate (T, inner), mixed (T, conv_cols), then convolved, and steps (T, 1,
    heads). Of mixed by heads: x, what is added, b, where, and c, what is asked for. decay, step (T, heads); o_rows (T,
    inner), by heads and by groups."""

    def __init__(self, layout: MambaLayout, rows: int, take: Take) -> None:
        n = layout.heads
        self.inner = Results(layout.inner, rows, take)
        whole, keys = self.inner.parts["whole"], n.key_heads * n.key_dim
        self.gate, self.mixed = whole[:, : n.inner], whole[:, n.inner : n.inner + n.conv_cols]
        self.steps = whole[:, n.inner + n.conv_cols :].reshape(rows, 1, n.heads)
        self.x = self.mixed[:, : n.inner].reshape(rows, n.heads, n.value_dim)
        self.b = self.mixed[:, n.inner : n.inner + keys].reshape(rows, n.key_heads, n.key_dim)
        self.c = self.mixed[:, n.inner + keys :].reshape(rows, n.key_heads, n.key_dim)
        self.decay, self.step, self.o_rows = take(n.heads), take(n.heads), take(n.inner)
        self.o = self.o_rows.reshape(rows, n.heads, n.value_dim)
        self.o_groups = self.o_rows.reshape(rows, n.key_heads, -1)


@dataclass(frozen=True)
class Mamba:
    """x += output(norm(scan(convolution(...)) * silu(gate))), all of inner(norm(x)). Heads are in groups, of which each
    has its norm, where there is one."""

    heads: Recurrence
    normed: bool
    eps: float
    inner: Product
    output: Product

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        n = self.heads
        return product_tensors(self.inner, self.output) | {
            "ssm_conv1d": Tensor((n.conv_cols, n.taps)),
            "ssm_conv1d.bias": Tensor((n.conv_cols,), False),
            "ssm_dt.bias": Tensor((n.heads,)),
            "ssm_a.": Tensor((n.heads, 1)),
            "ssm_d.": Tensor((n.heads, 1)),
            "ssm_norm": Tensor((n.key_heads, n.inner // n.key_heads), self.normed),
        }

    @property
    def kv(self) -> None:
        return None

    @property
    def state(self) -> StateLayer:
        n = self.heads
        return StateLayer(n.taps - 1, n.conv_cols, n.heads, n.key_dim, n.value_dim)

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.output.sums

    @property
    def floats(self) -> int:
        return 2 * self.inner.rows + 2 * self.output.cols + self.output.unit_floats

    @cached_property
    def layout(self) -> MambaLayout:
        """Of its buffers."""
        return MambaLayout(self.inner, self.heads)

    @property
    def layouts(self) -> tuple[MambaLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        here.kernels.rms_norm(x, here.vectors[self.inner.norm], self.inner.eps, s.h)
        self.scan(here, s.h, places, s)
        add_product(here, self.output, s.of(self.layout).o_rows, x, s)

    def scan(self, here: Here, h: F32, places: Places, s: Scratch) -> None:
        """All but the last product, of h (T, d), which comes normed: into `o_rows` of its buffers."""
        b, n, kernels, vectors = s.of(self.layout), self.heads, here.kernels, here.vectors
        multiply(here, self.inner, h, b.inner)
        states, weight = places.states(here.layer), vectors["ssm_conv1d"].reshape(n.conv_cols, n.taps)
        kernels.causal_conv(b.mixed, weight, vectors.get("ssm_conv1d.bias"), states, b.mixed, "silu")
        kernels.scan_steps(b.steps, None, vectors["ssm_dt.bias"], vectors["ssm_a."], b.decay, b.step)
        skip = vectors["ssm_d."]
        kernels.scan(b.c, b.b, b.x, b.decay, b.step, states, b.o, rule="sum", turn=n.turn, skip=skip)
        norm = vectors.get("ssm_norm")
        weights = None if norm is None else norm.reshape(n.key_heads, -1)
        kernels.gated_norm(b.o_groups, b.gate, weights, self.eps, b.o_groups, gate_first=True)


def mamba_of(spec: ModelSpec, layer: int) -> Mamba | AbsentMixer:
    """A layer's Mamba-2, as its family and numbers say."""
    n, d, units = spec.layers[layer].recurrence, spec.d_model, spec.units(layer)
    assert n is not None  # plan.py asks for one where there is
    rows = n.inner + n.conv_cols + n.heads
    output = Product(
        "mixer_out",
        n.inner,
        (Part("t", "ssm_out", 0, d),),
        eps=spec.norm_eps,
        factor=spec.residual_scale,
        units=None if units is None else units.mixer,
    )
    if not n.heads:
        return AbsentMixer(output, (), None, StateLayer())
    return Mamba(
        heads=n,
        normed=not spec.family.mixers_beside,
        eps=spec.norm_eps,
        inner=Product("mixer_in", d, (Part("whole", "ssm_in", 0, rows),), "attn_norm", eps=spec.norm_eps),
        output=output,
    )
