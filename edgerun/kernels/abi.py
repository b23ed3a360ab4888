"""What kernels take: the one place that names the int64 slots of their arguments.

A kernel is `void f(int64 arguments, int64 low, int64 high)`: it does the items [low, high) of an operation, and
`arguments` is the address of the slots that a class here, or of `attention_abi`,
`state_abi` and `stream_abi`, lists in their order. A class's docstring
says what the kernel does and what an item is. An address is one of memory that the caller keeps; floats travel as the
address of an f32.
`native/header.py` makes the C header from this.
"""

from __future__ import annotations

import struct
from typing import Annotated, NamedTuple, get_type_hints

from edgerun.kernels.attention_abi import AttentionDecode, AttentionMerge, AttentionPrompt, AttentionRow, MergedRow
from edgerun.kernels.state_abi import CausalConv, GatedNorm, Scan, ScanSteps, UnitHeads
from edgerun.kernels.stream_abi import AboveMean, CorrectStreams, MatchNorms, MixStreams
from edgerun.kernels.sum_abi import SumRanks

Arguments = tuple[int, ...]  # any of the classes below


def packed(arguments: Arguments) -> bytes:
    """As a kernel reads them."""
    return struct.pack(f"{len(arguments)}q", *arguments)


def slots(arguments: type[Arguments]) -> list[tuple[str, str]]:
    """(name, what it is) of each, in order."""
    hints = get_type_hints(arguments, include_extras=True)
    return [(name, str(hint.__metadata__[0])) for name, hint in hints.items()]


def slot_of(arguments: type[Arguments], name: str) -> int:
    """Where a slot is, for those who change it in what was recorded. ValueError for none of the class."""
    return [each for each, _ in slots(arguments)].index(name)


class Pack(NamedTuple):
    """GGUF rows into the packed layout. An item is a group of lanes rows; rows that do not exist become zeros."""

    raw: Annotated[int, "address of the first row's first byte"]
    row_bytes: Annotated[int, "bytes from row to row"]
    rows: Annotated[int, "rows"]
    out: Annotated[int, "address of the packed groups"]
    blocks: Annotated[int, "blocks in a row"]
    chosen: Annotated[int, "address of i32: the number of every row that is packed; 0: all from the first on"] = 0


class Dequantize(NamedTuple):
    """Packed rows back to floats. An item is a group of lanes rows, all of which are written."""

    packed: Annotated[int, "address of the packed groups"]
    out: Annotated[int, "address of (groups * lanes, columns) f32"]
    blocks: Annotated[int, "blocks in a row"]


class Quantize(NamedTuple):
    """Activations to int8, by blocks of 32 columns (q8) or 256 (q8k), or to bf16 (parts). An item is a row."""

    x: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns"]
    quants: Annotated[int, "address of (rows, cols) i8; or of parts"]
    scales: Annotated[int, "address of (rows, blocks) f32; or of parts as f32, 0: none"]
    sums: Annotated[int, "address of (rows, blocks) sums: 24 bytes of a block (q8), 148 (q8k)"]


class Products(NamedTuple):
    """The head of a launch of products. From byte 128 on follows a `Product` for each. An item is a group of lanes
    weight rows, counted through all products."""

    products: Annotated[int, "products"]


class Product(NamedTuple):
    """One product: out = x times weights, transposed (or added to out). 16 slots."""

    first_item: Annotated[int, "groups in the products before it"]
    weights: Annotated[int, "address of packed weights"]
    out: Annotated[int, "address of (tokens, rows) f32"]
    tokens: Annotated[int, "rows of activations"]
    blocks: Annotated[int, "blocks in a row of weights"]
    rows: Annotated[int, "rows of weights"]
    out_stride: Annotated[int, "bytes from token to token in out"]
    add: Annotated[int, "1: add to out; 0: replace it"]
    quants: Annotated[int, "address of quants (or of f32 activations)"]
    quants_stride: Annotated[int, "bytes from token to token in quants"]
    scales: Annotated[int, "address of scales"]
    scales_stride: Annotated[int, "bytes from token to token in scales"]
    sums: Annotated[int, "address of sums"]
    sums_stride: Annotated[int, "bytes from token to token in sums"]
    unused_14: Annotated[int, "not used"] = 0
    unused_15: Annotated[int, "not used"] = 0


class RmsNorm(NamedTuple):
    """out = x / sqrt(mean(x^2) + eps) * weight. An item is a row; out may be x."""

    x: Annotated[int, "address of (rows, cols) f32"]
    weight: Annotated[int, "address of (cols,) f32"]
    out: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns"]
    eps: Annotated[int, "address of an f32"]
    stride: Annotated[int, "bytes from row to row in x"]


class HeadGate(NamedTuple):
    """x = x * kind(gate), in place. An item is a head of a row."""

    x: Annotated[int, "address of (heads, cols) f32"]
    gate: Annotated[int, "address of f32: cols for each head, or one"]
    cols: Annotated[int, "columns"]
    stride: Annotated[int, "bytes from head to head in the gate"]
    one: Annotated[int, "1: one number for all of a head; 0: one for each column"]
    kind: Annotated[int, "0 sigmoid, 1 softplus"]


class Copy(NamedTuple):
    """out = x. An item is a row."""

    x: Annotated[int, "address of the first row, f32"]
    x_stride: Annotated[int, "bytes from row to row in x"]
    out: Annotated[int, "address of the first row of the result"]
    out_stride: Annotated[int, "bytes from row to row in the result"]
    cols: Annotated[int, "columns"]


class Rope(NamedTuple):
    """Rotary embedding, in place. An item is a token."""

    x: Annotated[int, "address of (tokens, heads, head_dim) f32"]
    heads: Annotated[int, "heads"]
    head_dim: Annotated[int, "dimensions of a head"]
    cos: Annotated[int, "address of (tokens, half) f32"]
    sin: Annotated[int, "address of (tokens, half) f32"]
    half: Annotated[int, "half of the dimensions that are rotated"]
    neox: Annotated[int, "1: pairs lie half apart; 0: side by side"]


class KvWrite(NamedTuple):
    """New keys (turned, see attention_layout.py) and values into pages. From byte 128 on follows a `WrittenSpan` for
    each span. An item is (span, kv head)."""

    keys_at: Annotated[int, "bytes from a page's first to the layer's keys"]
    values_at: Annotated[int, "bytes from a page's first to the layer's values"]
    keys_stride: Annotated[int, "bytes from head to head in keys"]
    values_stride: Annotated[int, "bytes from head to head in values"]
    k: Annotated[int, "address of (rows, kv heads, head_dim) f32"]
    v: Annotated[int, "address of (rows, kv heads, head_dim_v) f32"]
    heads: Annotated[int, "kv heads"]
    head_dim: Annotated[int, "dimensions of a key"]
    head_dim_v: Annotated[int, "dimensions of a value"]
    keys_format: Annotated[int, "0 f16, 1 q8_0, 2 q4_0 (see kv_formats.py)"]
    values_format: Annotated[int, "as of keys"]


class WrittenSpan(NamedTuple):
    """Consecutive rows of one sequence."""

    table: Annotated[int, "address of the sequence's page addresses"]
    start: Annotated[int, "position of the first row"]
    row: Annotated[int, "the first row"]
    rows: Annotated[int, "how many"]


class Rotate(NamedTuple):
    """out = x times a Hadamard matrix, over its square root of size: see kv_formats.py. An item is `size` numbers."""

    x: Annotated[int, "address of (items, size) f32"]
    out: Annotated[int, "address of (items, size) f32"]
    size: Annotated[int, "a power of two, at least the lanes"]
    factor: Annotated[int, "address of an f32: 1 / the square root of size"]


class LayerNorm(NamedTuple):
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias. An item is a row; out may be x."""

    x: Annotated[int, "address of (rows, cols) f32"]
    weight: Annotated[int, "address of (cols,) f32"]
    bias: Annotated[int, "address of (cols,) f32; 0: none"]
    out: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns"]
    eps: Annotated[int, "address of an f32"]


class Affine(NamedTuple):
    """x = x * scale + bias, in place, each row by the entry that its id names. An item is a row."""

    x: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns"]
    ids: Annotated[int, "address of i32: each row's entry; 0: all the first"]
    scale: Annotated[int, "address of an f32 for each entry; 0: none"]
    bias: Annotated[int, "address of (entries, cols) f32; 0: none"]


class Gated(NamedTuple):
    """out = kind(gate) * up. An item is a row."""

    gate: Annotated[int, "address of (rows, cols) f32"]
    up: Annotated[int, "address of (rows, cols) f32; 0: all ones"]
    out: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns"]
    kind: Annotated[int, "0 silu, 1 gelu, 2 relu, 3 relu squared, 4 oai (see interface.py), 7 none"]


class Combine(NamedTuple):
    """out = sum over k of weights * parts, in the order of k. An item is a row."""

    parts: Annotated[int, "address of (rows * k, cols) f32"]
    weights: Annotated[int, "address of (rows, k) f32"]
    out: Annotated[int, "address of (rows, cols) f32"]
    k: Annotated[int, "parts of a row"]
    cols: Annotated[int, "columns"]
    add: Annotated[int, "1: add to out; 0: replace it"]


class Route(NamedTuple):
    """The experts that each row's logits choose, best first, and their weights: see routing.py. An item is a row."""

    logits: Annotated[int, "address of (rows, experts) f32"]
    bias: Annotated[int, "address of (experts,) f32, added to what experts are chosen by; 0: none"]
    ids: Annotated[int, "address of (rows, used) i32"]
    weights: Annotated[int, "address of (rows, used) f32; 0: only who is chosen"]
    work: Annotated[int, "address of (rows, 3, experts) f32"]
    experts: Annotated[int, "experts"]
    used: Annotated[int, "experts that a row chooses"]
    kind: Annotated[int, "0 softmax, 1 sigmoid, 2 softmax of the chosen, 3 root of softplus"]
    renormalise: Annotated[int, "1: weights sum to one"]
    scale: Annotated[int, "address of an f32: of the weights at the end"]
    groups: Annotated[int, "groups of experts"]
    groups_used: Annotated[int, "groups that a row chooses from"]


class FindExperts(NamedTuple):
    """Tell the products of a token's experts where these lie. Where one is not there, or one that will be wanted is
    neither there nor on its way, the program stops after this launch (`pool_kernels.HALT`). One item."""

    ids: Annotated[int, "address of (used,) i32: who was chosen"]
    used: Annotated[int, "how many"]
    places: Annotated[int, "address of (experts,) int64: the place of each; -1: on its way to one, -2: nowhere"]
    found: Annotated[int, "address of i32: 0 all, 1 all but somebody will be wanted, 2 not all; then all ids"]
    halt: Annotated[int, "address of an int64 that stops the program: 1"]
    first: Annotated[int, "address of the first `Product` of gates, if there are some, then ups"]
    last: Annotated[int, "address of the first `Product` of downs"]
    gate: Annotated[int, "address of the gate at place 0; 0: no gates"]
    gate_stride: Annotated[int, "bytes from place to place"]
    up: Annotated[int, "address of the up at place 0"]
    up_stride: Annotated[int, "bytes from place to place"]
    down: Annotated[int, "address of the down at place 0"]
    down_stride: Annotated[int, "bytes from place to place"]
    wanted: Annotated[int, "address of an int64: of how many guesses experts will be wanted; -1: stop in any case"]
    guesses: Annotated[int, "address of (guesses, 2) int64: ids (used,) i32 and places, as above, of a later layer"]
    guess_count: Annotated[int, "how many guesses"]


class Weigh(NamedTuple):
    """out = x . weight. An item is a row."""

    x: Annotated[int, "address of (rows, cols) f32"]
    weight: Annotated[int, "address of (cols,) f32"]
    out: Annotated[int, "address of (rows,) f32"]
    cols: Annotated[int, "columns"]


class RoundEighths(NamedTuple):
    """Numbers as the wire takes them (`eighths.py`). An item is a block of 32."""

    x: Annotated[int, "address of (numbers,) f32"]
    numbers: Annotated[int, "how many"]
    out: Annotated[int, "address of a scale, f32, for each block, then (numbers,) i8; bytes after are overwritten"]


class SumEighths(NamedTuple):
    """The sum of such numbers of several senders, added in their order. An item is a block of 32."""

    parts: Annotated[int, "address of the addresses, int64, of what each sent"]
    senders: Annotated[int, "senders"]
    numbers: Annotated[int, "of each"]
    out: Annotated[int, "address of (numbers,) f32: the sum, or what is read of it when it was rounded"]
    rounded: Annotated[int, "address of where the sum is written rounded; 0: nowhere"]


class Add(NamedTuple):
    """x += y. An item is a row."""

    x: Annotated[int, "address of rows of f32"]
    y: Annotated[int, "address of rows of f32"]
    cols: Annotated[int, "columns"]
    y_stride: Annotated[int, "bytes from row to row in y; 0: the same for all"]
    x_stride: Annotated[int, "bytes from row to row in x"]


class NeuronsUp(NamedTuple):
    """h = act(gate) * (x . up) for neurons that fired. An item is a neuron of ids."""

    gate: Annotated[int, "address of (tokens, ff) f32"]
    h: Annotated[int, "address of (tokens, ff) f32"]
    ff: Annotated[int, "neurons in all"]
    tokens: Annotated[int, "tokens"]
    ids: Annotated[int, "address of i32: which neurons"]
    slots_at: Annotated[int, "address of i32: in which row of memory each lies"]
    memory: Annotated[int, "address of neurons' rows, as in the file"]
    memory_stride: Annotated[int, "bytes from row to row of memory"]
    blocks: Annotated[int, "blocks of 32 columns"]
    x: Annotated[int, "address of x, or of its quants"]
    x_stride: Annotated[int, "bytes from token to token"]
    scales: Annotated[int, "address of scales"]
    scales_stride: Annotated[int, "bytes from token to token"]
    squared: Annotated[int, "1: relu squared; 0: relu"]


class NeuronsGate(NamedTuple):
    """h = act(gate) * values for neurons that fired, 0 for the others. An item is a token."""

    gate: Annotated[int, "address of (tokens, ff) f32"]
    h: Annotated[int, "address of (tokens, ff) f32"]
    ff: Annotated[int, "neurons in all"]
    ids: Annotated[int, "address of i32: which neurons"]
    neurons: Annotated[int, "how many ids"]
    values: Annotated[int, "address of (tokens, neurons) f32: x . up"]
    squared: Annotated[int, "1: relu squared; 0: relu"]


class NeuronsDown(NamedTuple):
    """out += h * down for neurons that fired. An item is a slice of columns (layout.NEURON_SLICE)."""

    h: Annotated[int, "address of (tokens, ff) f32"]
    ff: Annotated[int, "neurons in all"]
    tokens: Annotated[int, "tokens"]
    ids: Annotated[int, "address of i32: which neurons"]
    slots_at: Annotated[int, "address of i32: in which row of memory each lies"]
    memory: Annotated[int, "address of the first down row"]
    memory_stride: Annotated[int, "bytes from row to row of memory"]
    neurons: Annotated[int, "how many ids"]
    out: Annotated[int, "address of (tokens, cols) f32"]
    cols: Annotated[int, "columns"]


_OF_KERNEL = {
    "rms_norm": RmsNorm,
    "layer_norm": LayerNorm,
    "affine": Affine,
    "copy": Copy,
    "head_gate": HeadGate,
    "rope": Rope,
    "kv_write": KvWrite,
    "rotate": Rotate,
    "gated": Gated,
    "combine": Combine,
    "add": Add,
    "round_eighths": RoundEighths,
    "sum_eighths": SumEighths,
    "route": Route,
    "weigh": Weigh,
    "find_experts": FindExperts,
    "sum_ranks": SumRanks,
    "causal_conv": CausalConv,
    "scan": Scan,
    "unit_heads": UnitHeads,
    "scan_steps": ScanSteps,
    "gated_norm": GatedNorm,
    "mix_streams": MixStreams,
    "correct_streams": CorrectStreams,
    "match_norms": MatchNorms,
    "above_mean": AboveMean,
    "neurons_gate": NeuronsGate,
    "attention_decode": AttentionDecode,
    "attention_prompt": AttentionPrompt,
    "attention_merge": AttentionMerge,
}
_OF_FAMILY = {
    "attention_decode_": AttentionDecode,
    "pack_": Pack,
    "dequantize_": Dequantize,
    "quantize_": Quantize,
    "matmul_": Products,
    "neurons_up_": NeuronsUp,
    "neurons_down_": NeuronsDown,
}
LISTED = {Products: Product, KvWrite: WrittenSpan, AttentionDecode: AttentionRow, AttentionMerge: MergedRow}
LIST_AT = 128  # bytes into a launch: where what is `LISTED` begins
PRODUCT_BYTES = 128

# The thread pool's are no kernels: plain functions of int64, with their parameters (see pool_kernels.py)
POOL = {
    "pool_run": ("void", ("control", "kernel", "arguments", "items", "grain")),
    "pool_program": ("int64_t", ("control", "program", "count")),
    "pool_work": ("int64_t", ("control", "seen", "spins")),
}


def arguments_of(kernel: str) -> type[Arguments]:
    """The class of a kernel's arguments. KeyError for what is no kernel (the pool's functions)."""
    for prefix, found in _OF_FAMILY.items():
        if kernel.startswith(prefix):
            return found
    return _OF_KERNEL[kernel]
