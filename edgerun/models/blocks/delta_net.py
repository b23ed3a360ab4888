"""A gated delta net (Yang, Kautz and Hatamizadeh 2025): each head keeps a matrix that says which value a key has, lets
it fade, and corrects it by what every position says anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

from edgerun.kernels.interface import F32
from edgerun.kv import StateLayer
from edgerun.models.blocks.absent import AbsentMixer
from edgerun.models.blocks.base import Cancel, Here
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.products import Results, add_product, multiply, widths_of
from edgerun.models.places import Places
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec, Recurrence

_PACKED, _STEPS = "ssm_in", "ssm_ba"  # how some files have several matrices in one


@dataclass(frozen=True)
class DeltaLayout:
    """Of `DeltaBuffers`."""

    inner: Product
    heads: Recurrence
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        n = self.heads
        apart = (n.conv_cols, n.inner) if n.packed_inner else ()
        return (*widths_of(self.inner), *apart, n.heads, n.heads, n.inner)

    def make(self, rows: int, take: Take) -> DeltaBuffers:
        return DeltaBuffers(self, rows, take)


class DeltaBuffers:
    """qkv (T, conv_cols) of the product, then convolved; gate (T, heads * value_dim); decay, step (T, heads) and alpha,
    beta (T, n, m), of n * m heads, what they are made of; o (T, heads, value_dim). Of qkv by heads: q, k, v, and keys,
    which are q and k."""

    def __init__(self, layout: DeltaLayout, rows: int, take: Take) -> None:
        n = layout.heads
        self.inner = Results(layout.inner, rows, take)
        parts, both = self.inner.parts, 2 * n.key_heads * n.key_dim
        if n.packed_inner:
            self.qkv, self.gate = take(n.conv_cols), take(n.inner)
        else:
            self.qkv, self.gate = parts["qkv"], parts["gate"]
        if n.packed_steps:
            together = parts["steps"].reshape(rows, n.key_heads, -1)
            self.beta, self.alpha = (together[:, :, i * n.group : (i + 1) * n.group] for i in (0, 1))
        else:
            self.beta, self.alpha = (parts[name].reshape(rows, 1, n.heads) for name in ("beta", "alpha"))
        self.decay, self.step, self.o_rows = take(n.heads), take(n.heads), take(n.inner)
        self.o = self.o_rows.reshape(rows, n.heads, n.value_dim)
        self.keys = self.qkv[:, :both].reshape(rows, 2 * n.key_heads, n.key_dim)
        self.q, self.k = self.keys[:, : n.key_heads], self.keys[:, n.key_heads :]
        self.v = self.qkv[:, both:].reshape(rows, n.heads, n.value_dim)


@dataclass(frozen=True)
class DeltaNet:
    """x += output(norm(scan(convolution(qkv(norm(x))))) * silu(gate(norm(x)))), heads of whose queries and keys have
    length one."""

    heads: Recurrence
    eps: float
    inner: Product
    output: Product

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        n = self.heads
        return product_tensors(self.inner, self.output) | {
            "ssm_conv1d": Tensor((n.conv_cols, n.taps)),
            "ssm_dt.bias": Tensor((n.heads,)),
            "ssm_a.": Tensor((n.heads,)),
            "ssm_norm": Tensor((n.value_dim,)),
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
        return 2 * self.inner.rows + 3 * self.output.cols + self.output.unit_floats

    @cached_property
    def layout(self) -> DeltaLayout:
        """Of its buffers."""
        return DeltaLayout(self.inner, self.heads)

    @property
    def layouts(self) -> tuple[DeltaLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b, n, kernels, vectors = s.of(self.layout), self.heads, here.kernels, here.vectors
        kernels.rms_norm(x, vectors[self.inner.norm], self.inner.eps, s.h)
        multiply(here, self.inner, s.h, b.inner)
        if n.packed_inner:
            here.cut(partial(_take_apart, n, b))
        states, weight = places.states(here.layer), vectors["ssm_conv1d"].reshape(n.conv_cols, n.taps)
        kernels.causal_conv(b.qkv, weight, None, states, b.qkv, "silu")
        kernels.unit_heads(b.keys, self.eps)
        kernels.scan_steps(b.alpha, b.beta, vectors["ssm_dt.bias"], vectors["ssm_a."], b.decay, b.step)
        scale = n.key_dim**-0.5
        kernels.scan(b.q, b.k, b.v, b.decay, b.step, states, b.o, rule="delta", turn=n.turn, scale=scale)
        kernels.gated_norm(b.o, b.gate, vectors["ssm_norm"], self.eps, b.o, gate_first=False)
        add_product(here, self.output, b.o_rows, x, s)


def _take_apart(n: Recurrence, b: DeltaBuffers, cancelled: Cancel, rows: int) -> None:
    """b.qkv and b.gate out of the result of one matrix, which has q, k, v and gate side by side for every key head."""
    whole = b.inner.parts["whole"].reshape(len(b.qkv), n.key_heads, -1)
    key, value, low = n.key_dim, n.group * n.value_dim, 0
    both = n.key_heads * key
    for target, cols in ((b.qkv[:, :both], key), (b.qkv[:, both : 2 * both], key), (b.qkv[:, 2 * both :], value)):
        target[:] = whole[:, :, low : low + cols].reshape(len(target), -1)
        low += cols
    b.gate[:] = whole[:, :, low:].reshape(len(b.gate), -1)


def delta_net_of(spec: ModelSpec, layer: int) -> DeltaNet | AbsentMixer:
    """A layer's delta net, as its family and numbers say."""
    n, d, units = spec.layers[layer].recurrence, spec.d_model, spec.units(layer)
    assert n is not None  # plan.py asks for one where there is
    output = Product(
        "mixer_out",
        n.inner,
        (Part("t", "ssm_out", 0, d),),
        eps=spec.norm_eps,
        units=None if units is None else units.mixer,
    )
    if not n.heads:
        return AbsentMixer(output, (), None, StateLayer())
    if n.packed_inner:
        parts = [Part("whole", _PACKED, 0, n.conv_cols + n.inner)]
    else:
        parts = [Part("qkv", "attn_qkv", 0, n.conv_cols), Part("gate", "attn_gate", 0, n.inner)]
    if n.packed_steps:
        parts.append(Part("steps", _STEPS, 0, 2 * n.heads))
    else:
        parts += [Part("beta", "ssm_beta", 0, n.heads), Part("alpha", "ssm_alpha", 0, n.heads)]
    return DeltaNet(
        heads=n,
        eps=spec.norm_eps,
        inner=Product("mixer_in", d, tuple(parts), "attn_norm", eps=spec.norm_eps),
        output=output,
    )
