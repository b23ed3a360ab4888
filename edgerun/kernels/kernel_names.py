"""Which kernels a model needs, by the types of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.formats.base import Plain
from edgerun.kernels.isa import Isa
from edgerun.kernels.kv_formats import KvFormat, decode_kernel
from edgerun.kernels.layout import ROW_TYPES

ALWAYS = (
    *("pool_run", "pool_work", "pool_program"),
    *("add", "affine", "rms_norm", "layer_norm", "rope", "kv_write", "gated", "head_gate"),
    *("attention_decode", "attention_merge"),
)


class MatrixKernels(NamedTuple):
    """What a type of weights is packed and multiplied with."""

    pack: str
    matmul: str
    form: str  # of activations: "q8", "q8k" or "f32"; see also `form_of`
    block: int  # columns of a block


MATRIX_KERNELS = {
    type: MatrixKernels(f"pack_{format.name}", f"matmul_{format.name}", format.form, format.cols)
    for type, format in FORMATS.items()
}
QUANTIZE = {"q8": "quantize_q8", "q8k": "quantize_q8k", "parts": "quantize_parts"}  # of each form but "f32"


def form_of(type: GgmlType, isa: Isa) -> str:
    """How an instruction set takes the activations of a product with weights of this type: "parts" where floats go by
    tiles, else as their format says."""
    format = FORMATS[type]
    by_tiles = isa.tile_products and isinstance(format, Plain) and format.tile_products
    return "parts" if by_tiles else format.form


def with_forms(names: Sequence[str], isa: Isa) -> list[str]:
    """Kernels that are wanted and, after them, those that the forms of this instruction set take beside."""
    products = [type for type, each in MATRIX_KERNELS.items() if each.matmul in names]
    return [*names, *(["quantize_parts"] if any(form_of(type, isa) == "parts" for type in products) else [])]


def for_matrices(types: Sequence[GgmlType]) -> list[str]:
    """What matrices of these types need, beside the kernels that are always needed."""
    names = ["attention_prompt", "combine"]
    for type in types:
        if type in MATRIX_KERNELS:
            pack, matmul, form, _ = MATRIX_KERNELS[type]
            names += [pack, matmul] if form == "f32" else [pack, matmul, QUANTIZE[form]]
    return list(dict.fromkeys(names))


def for_keys_and_values(keys: KvFormat, values: KvFormat) -> list[str]:
    """What keys and values in these formats need, beside the kernels that are always needed."""
    return [decode_kernel(keys, values), *(["rotate"] if keys.is_rotated else [])]


RECURRENT = ("causal_conv", "scan", "unit_heads", "scan_steps", "gated_norm")  # what recurrent layers need beside

MIXTURE = ("route", "weigh", "find_experts")  # what mixtures of experts do

RANKS = ("sum_ranks",)  # what ranks of a group do together

EIGHTHS = ("round_eighths", "sum_eighths")  # what sums over devices do

STREAMS = ("mix_streams", "correct_streams", "match_norms", "above_mean")  # what models of several streams do


def neurons_kernel(way: str, type: GgmlType) -> str:
    """Of neurons' rows of one of ROW_TYPES; way: "up" or "down"."""
    return f"neurons_{way}_{type.name.lower()}"


def dequantize_kernel(type: GgmlType) -> str:
    """Of packed rows of a type that is none of ROW_TYPES."""
    return f"dequantize_{FORMATS[type].name}"


def for_neurons(types: Sequence[GgmlType]) -> list[str]:
    """What neurons of these types need, beside the kernels that are always needed."""
    names = []
    for type in types:
        pack, matmul, form, _ = MATRIX_KERNELS[type]
        if type in ROW_TYPES:
            names += [neurons_kernel("up", type), neurons_kernel("down", type)]
        else:
            names += [pack, matmul, "neurons_gate", dequantize_kernel(type), neurons_kernel("down", GgmlType.F32)]
        names += [QUANTIZE[form]] if form != "f32" else []
    return list(dict.fromkeys(names))
