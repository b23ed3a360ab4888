"""What kernels take: the one place that names the int64 slots of their arguments.

A kernel is `void f(int64 arguments, int64 low, int64 high)`: it does the items [low, high) of an operation, and
`arguments` is the address of the slots that a class here lists in their order. An address is one of memory that the
caller keeps; floats travel as the address of an f32. `native/header.py` makes the C header from this.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, field, fields
from typing import Any


def slot(about: str) -> Any:
    """An int64, and what it is."""
    return field(metadata={"about": about})


@dataclass(frozen=True)
class Arguments:
    """Slots of a kernel, in their order. The docstring of each class says what the kernel does and what an item is."""

    def packed(self) -> bytes:
        """As a kernel reads them."""
        values = astuple(self)
        return struct.pack(f"{len(values)}q", *values)

    @classmethod
    def slots(cls) -> list[tuple[str, str]]:
        """(name, what it is) of each."""
        return [(each.name, str(each.metadata["about"])) for each in fields(cls)]

    @classmethod
    def index(cls, name: str) -> int:
        """Where a slot is, for those who change it in what was recorded."""
        return [each.name for each in fields(cls)].index(name)


@dataclass(frozen=True)
class Pack(Arguments):
    """GGUF rows into the packed layout. An item is a group of lanes rows; rows that do not exist become zeros."""

    raw: int = slot("address of the first row's first byte")
    row_bytes: int = slot("bytes from row to row")
    rows: int = slot("rows")
    out: int = slot("address of the packed groups")
    blocks: int = slot("blocks in a row")


@dataclass(frozen=True)
class Quantize(Arguments):
    """Activations to int8, by blocks of 32 columns (q8) or 256 (q8k). An item is a row."""

    x: int = slot("address of (rows, cols) f32")
    cols: int = slot("columns")
    quants: int = slot("address of (rows, cols) i8")
    scales: int = slot("address of (rows, blocks) f32")
    sums: int = slot("address of (rows, blocks) sums: 24 bytes of a block (q8), 148 (q8k)")


@dataclass(frozen=True)
class Products(Arguments):
    """The head of a launch of products. From byte 128 on follows a `Product` for each. An item is a group of lanes
    weight rows, counted through all products."""

    count: int = slot("products")


@dataclass(frozen=True)
class Product(Arguments):
    """One product: out = x times weights, transposed (or added to out). 16 slots."""

    first_item: int = slot("groups in the products before it")
    weights: int = slot("address of packed weights")
    out: int = slot("address of (tokens, rows) f32")
    tokens: int = slot("rows of activations")
    blocks: int = slot("blocks in a row of weights")
    rows: int = slot("rows of weights")
    out_stride: int = slot("bytes from token to token in out")
    add: int = slot("1: add to out; 0: replace it")
    quants: int = slot("address of quants (or of f32 activations)")
    quants_stride: int = slot("bytes from token to token in quants")
    scales: int = slot("address of scales")
    scales_stride: int = slot("bytes from token to token in scales")
    sums: int = slot("address of sums")
    sums_stride: int = slot("bytes from token to token in sums")
    unused_14: int = slot("not used")
    unused_15: int = slot("not used")


@dataclass(frozen=True)
class RmsNorm(Arguments):
    """out = x / sqrt(mean(x^2) + eps) * weight. An item is a row; out may be x."""

    x: int = slot("address of (rows, cols) f32")
    weight: int = slot("address of (cols,) f32")
    out: int = slot("address of (rows, cols) f32")
    cols: int = slot("columns")
    eps: int = slot("address of an f32")


@dataclass(frozen=True)
class Rope(Arguments):
    """Rotary embedding, in place. An item is a token."""

    x: int = slot("address of (tokens, heads, head_dim) f32")
    heads: int = slot("heads")
    head_dim: int = slot("dimensions of a head")
    cos: int = slot("address of (tokens, half) f32")
    sin: int = slot("address of (tokens, half) f32")
    half: int = slot("half of the dimensions that are rotated")
    neox: int = slot("1: pairs lie half apart; 0: side by side")


@dataclass(frozen=True)
class KvWrite(Arguments):
    """New keys (turned, see attention_layout.py) and values into the f16 cache. An item is a kv head."""

    keys: int = slot("address of the cache's keys, f16")
    values: int = slot("address of the cache's values, f16")
    keys_stride: int = slot("bytes from head to head in keys")
    values_stride: int = slot("bytes from head to head in values")
    start: int = slot("position of the first token")
    k: int = slot("address of (tokens, kv heads, head_dim) f32")
    v: int = slot("address of (tokens, kv heads, head_dim_v) f32")
    tokens: int = slot("tokens")
    heads: int = slot("kv heads")
    head_dim: int = slot("dimensions of a key")
    head_dim_v: int = slot("dimensions of a value")


@dataclass(frozen=True)
class Gated(Arguments):
    """out = kind(gate) * up. An item is a row."""

    gate: int = slot("address of (rows, cols) f32")
    up: int = slot("address of (rows, cols) f32")
    out: int = slot("address of (rows, cols) f32")
    cols: int = slot("columns")
    kind: int = slot("0 silu, 1 gelu, 2 relu, 3 relu squared")


@dataclass(frozen=True)
class Combine(Arguments):
    """out = sum over k of weights * parts, in the order of k. An item is a row."""

    parts: int = slot("address of (rows * k, cols) f32")
    weights: int = slot("address of (rows, k) f32")
    out: int = slot("address of (rows, cols) f32")
    k: int = slot("parts of a row")
    cols: int = slot("columns")
    add: int = slot("1: add to out; 0: replace it")


@dataclass(frozen=True)
class Add(Arguments):
    """x += y. An item is a row."""

    x: int = slot("address of (rows, cols) f32")
    y: int = slot("address of rows of f32")
    cols: int = slot("columns")
    y_stride: int = slot("bytes from row to row in y; 0: the same for all")


@dataclass(frozen=True)
class NeuronsUp(Arguments):
    """h = act(gate) * (x . up) for neurons that fired. An item is a neuron of ids."""

    gate: int = slot("address of (tokens, ff) f32")
    h: int = slot("address of (tokens, ff) f32")
    ff: int = slot("neurons in all")
    tokens: int = slot("tokens")
    ids: int = slot("address of i32: which neurons")
    slots_at: int = slot("address of i32: in which row of memory each lies")
    memory: int = slot("address of neurons' rows, as in the file")
    memory_stride: int = slot("bytes from row to row of memory")
    blocks: int = slot("blocks of 32 columns")
    x: int = slot("address of x, or of its quants")
    x_stride: int = slot("bytes from token to token")
    scales: int = slot("address of scales")
    scales_stride: int = slot("bytes from token to token")
    squared: int = slot("1: relu squared; 0: relu")


@dataclass(frozen=True)
class NeuronsDown(Arguments):
    """out += h * down for neurons that fired. An item is a slice of columns (layout.NEURON_SLICE)."""

    h: int = slot("address of (tokens, ff) f32")
    ff: int = slot("neurons in all")
    tokens: int = slot("tokens")
    ids: int = slot("address of i32: which neurons")
    slots_at: int = slot("address of i32: in which row of memory each lies")
    memory: int = slot("address of the first down row")
    memory_stride: int = slot("bytes from row to row of memory")
    neurons: int = slot("how many ids")
    out: int = slot("address of (tokens, cols) f32")
    cols: int = slot("columns")


@dataclass(frozen=True)
class Attention(Arguments):
    """What decode and prompts share: see attention_kernels.py."""

    q: int = slot("address of (tokens, heads, head_dim) f32")
    k: int = slot("address of keys, f16, turned")
    v: int = slot("address of values, f16")
    k_stride: int = slot("bytes from kv head to kv head in k")
    v_stride: int = slot("bytes from kv head to kv head in v")
    head_dim: int = slot("dimensions of a key")
    head_dim_v: int = slot("dimensions of a value")
    heads: int = slot("heads")
    group: int = slot("heads of a kv head")
    first: int = slot("first position (decode)")
    end: int = slot("end position")
    constants: int = slot("address of f32 scale, softcap")
    scratch: int = slot("address of the threads' scratch")
    out: int = slot("address of the result")
    busy: int = slot("address of an int64 flag for each thread, all 0 before the first launch")
    scratch_bytes: int = slot("bytes of scratch for each thread")


@dataclass(frozen=True)
class AttentionDecode(Attention):
    """One token; out: for each head and chunk weighted values, maximum, sum. An item is (kv head, chunk)."""

    chunks: int = slot("chunks of positions")


@dataclass(frozen=True)
class AttentionPrompt(Attention):
    """Many tokens. An item is (tile, kv head), later tiles first."""

    tokens: int = slot("tokens")
    window: int = slot("positions that a token sees; 0: all before it")
    start: int = slot("position of the first token")


@dataclass(frozen=True)
class AttentionMerge(Arguments):
    """Chunks of a head joined in ascending order. An item is a head."""

    parts: int = slot("address of what attention_decode left")
    chunks: int = slot("chunks of positions")
    head_dim_v: int = slot("dimensions of a value")
    out: int = slot("address of (heads, head_dim_v) f32")


_OF_KERNEL = {
    "rms_norm": RmsNorm,
    "rope": Rope,
    "kv_write": KvWrite,
    "gated": Gated,
    "combine": Combine,
    "add": Add,
    "attention_decode": AttentionDecode,
    "attention_prompt": AttentionPrompt,
    "attention_merge": AttentionMerge,
}
_OF_FAMILY = {
    "pack_": Pack,
    "quantize_": Quantize,
    "matmul_": Products,
    "neurons_up_": NeuronsUp,
    "neurons_down_": NeuronsDown,
}
PRODUCT_AT = 128  # bytes into a launch of products: where its `Product`s begin

# The thread pool's are no kernels: plain functions of int64, with their parameters (see pool_kernels.py)
POOL = {
    "pool_run": ("void", ("control", "kernel", "arguments", "items", "grain")),
    "pool_program": ("void", ("control", "program", "count")),
    "pool_work": ("int64_t", ("control", "seen", "spins")),
}


def arguments_of(kernel: str) -> type[Arguments]:
    """The class of a kernel's arguments. KeyError for what is no kernel (the pool's functions)."""
    for prefix, found in _OF_FAMILY.items():
        if kernel.startswith(prefix):
            return found
    return _OF_KERNEL[kernel]
