"""One kernel's code: which module makes it, and compiling it here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgerun.kernels.formats import BY_NAME, FORMATS
from edgerun.kernels.isa import Isa
from edgerun.kernels.kv_formats import OTHER_DECODE
from edgerun.kernels.layout import ROW_TYPES

if TYPE_CHECKING:  # it loads Numba
    from edgerun.kernels.numba_target import Machine

# kernel -> the module whose function makes it: `build_<kernel>(ops)`, or, of those that every format has one of,
# `build_matmul(isa, format)`, `build_pack(isa, format)`, `build_dequantize(isa, format)`
SOURCES = {
    "pool_run": "pool_kernels",
    "pool_work": "pool_kernels",
    "pool_program": "pool_kernels",
    "quantize_q8": "quantize_kernels",
    "quantize_q8k": "quantize_kernels",
    "quantize_parts": "quantize_kernels",
    **{f"matmul_{name}": "matmul_driver" for name in BY_NAME},
    **{f"pack_{name}": "pack_kernels" for name in BY_NAME},
    "rms_norm": "layer_kernels",
    "layer_norm": "layer_kernels",
    "affine": "layer_kernels",
    "copy": "layer_kernels",
    "rope": "layer_kernels",
    "kv_write": "kv_kernels",
    "rotate": "kv_kernels",
    "gated": "layer_kernels",
    "head_gate": "layer_kernels",
    "combine": "layer_kernels",
    "add": "layer_kernels",
    **dict.fromkeys(("route", "weigh"), "route_kernels"),
    "find_experts": "find_kernels",
    "sum_ranks": "sum_kernels",
    **dict.fromkeys(("round_eighths", "sum_eighths"), "eighths_kernels"),
    "causal_conv": "state_kernels",
    "scan": "state_kernels",
    "unit_heads": "gate_kernels",
    "scan_steps": "gate_kernels",
    "gated_norm": "gate_kernels",
    **dict.fromkeys(("mix_streams", "correct_streams", "match_norms", "above_mean"), "stream_kernels"),
    "neurons_gate": "neuron_kernels",
    **{f"neurons_{way}_{FORMATS[type].name}": "neuron_kernels" for way in ("up", "down") for type in ROW_TYPES},
    **{f"dequantize_{each.name}": "dequantize_kernels" for type, each in FORMATS.items() if type not in ROW_TYPES},
    "attention_decode": "attention_kernels",
    **dict.fromkeys(OTHER_DECODE, "attention_kernels"),
    "attention_merge": "attention_merge",
    "attention_prompt": "attention_kernels",
}

_OF_A_SET = ("matmul_", "dequantize_")  # kernels that multiply or look up as their instruction set does it best


def known_isa(name: str, isa: Isa) -> Isa:
    """What a kernel's code knows of its instruction set: all of it, or no more than how many lanes it has. Kernels of
    the second kind are the same for all sets with as many lanes, compiled once and kept once."""
    return isa if name.startswith(_OF_A_SET) else Isa(f"{isa.lanes}lanes", isa.lanes, "llvm", ())


def compile_kernel(name: str, isa: Isa, symbol: str, machine: Machine | None = None) -> bytes:
    """Object code of a kernel under the name `symbol`, for `machine` (default: this one). Takes seconds."""
    from edgerun.kernels.codegen import object_code

    isa = known_isa(name, isa)
    module = import_module(f"edgerun.kernels.{SOURCES[name]}")
    if name in OTHER_DECODE:
        formats = OTHER_DECODE[name]
        return object_code(lambda ops: module.build_attention_decode(ops, *formats), symbol, isa, machine)
    task, _, format = name.partition("_")
    if format in BY_NAME and hasattr(module, f"build_{task}"):
        return object_code(lambda _: getattr(module, f"build_{task}")(isa, BY_NAME[format]), symbol, isa, machine)
    return object_code(getattr(module, f"build_{name}"), symbol, isa, machine)
