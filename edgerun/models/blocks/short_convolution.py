"""A gated short convolution (LFM2, Liquid AI 2025): a position sees a few before it, column by column."""

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
from edgerun.models.spec import ModelSpec

_KERNEL = "shortconv.conv"


class ConvolutionBuffers:
    """parts: b, c, x (T, cols) of the first product; gated, convolved (T, cols)."""

    def __init__(self, inner: Product, cols: int, rows: int, take: Take) -> None:
        self.inner = Results(inner, rows, take)
        self.b, self.c, self.x = (self.inner.parts[name] for name in "bcx")
        self.gated, self.convolved = take(cols), take(cols)


@dataclass(frozen=True)
class ConvolutionLayout:
    """Of `ConvolutionBuffers`."""

    inner: Product
    cols: int
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        return (*widths_of(self.inner), self.cols, self.cols)

    def make(self, rows: int, take: Take) -> ConvolutionBuffers:
        return ConvolutionBuffers(self.inner, self.cols, rows, take)


@dataclass(frozen=True)
class ShortConvolution:
    """b, c, x = inner(norm(x)); x += output(c * convolution(b * x)). taps: positions that it sees, with its own; cols:
    of b, c and x each."""

    taps: int
    cols: int
    inner: Product
    output: Product

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {**product_tensors(self.inner, self.output), _KERNEL: Tensor((self.cols, self.taps))}

    @property
    def kv(self) -> None:
        return None

    @property
    def state(self) -> StateLayer:
        return StateLayer(conv_rows=self.taps - 1, conv_cols=self.cols)

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.output.sums

    @property
    def floats(self) -> int:
        return 2 * self.inner.rows + 3 * self.cols + self.output.unit_floats

    @cached_property
    def layout(self) -> ConvolutionLayout:
        """Of its buffers."""
        return ConvolutionLayout(self.inner, self.cols)

    @property
    def layouts(self) -> tuple[ConvolutionLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b, kernels, vectors = s.of(self.layout), here.kernels, here.vectors
        kernels.rms_norm(x, vectors[self.inner.norm], self.inner.eps, s.h)
        multiply(here, self.inner, s.h, b.inner)
        kernels.gated(b.b, b.x, "none", b.gated)
        weight = vectors[_KERNEL].reshape(self.cols, self.taps)
        kernels.causal_conv(b.gated, weight, None, places.states(here.layer), b.convolved, "none")
        kernels.gated(b.c, b.convolved, "none", b.gated)
        add_product(here, self.output, b.gated, x, s)


def convolution_of(spec: ModelSpec, layer: int) -> ShortConvolution | AbsentMixer:
    """A layer's convolution, as its numbers say."""
    d, numbers, units = spec.d_model, spec.layers[layer], spec.units(layer)
    cols = numbers.conv_cols
    output = Product(
        "mixer_out",
        cols,
        (Part("t", "shortconv.out_proj", 0, d),),
        eps=spec.norm_eps,
        units=None if units is None else units.mixer,
    )
    if not cols:
        return AbsentMixer(output, (), None, StateLayer())
    parts = tuple(Part(name, "shortconv.in_proj", index * cols, cols) for index, name in enumerate("bcx"))
    return ShortConvolution(
        taps=numbers.conv_taps,
        cols=cols,
        inner=Product("mixer_in", d, parts, "attn_norm", eps=spec.norm_eps),
        output=output,
    )
