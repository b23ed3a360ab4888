"""What is made for ARM, seen from any processor: `tools.arm` runs it under emulation."""

from __future__ import annotations

import struct

import pytest

from edgerun.device.cpu_features import arm_features
from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.isa import ISAS, Isa
from edgerun.kernels.numba_target import Machine

_SDOT_BY_ELEMENT = (0xFFC0F400, 0x4F80E000)  # mask and bits of `sdot v.4s, v.16b, v.4b[i]`
_SDOT = (0xFFE0FC00, 0x4E809400)  # of `sdot v.4s, v.16b, v.16b`
_SMULL = (0xBFE0FC00, 0x0E20C000)  # of `smull v.8h, v.8b, v.8b`, and of its upper half
_SMLAL = (0xBFE0FC00, 0x0E208000)


def code_of(kernel: str, isa: Isa) -> list[int]:
    """The words of a kernel's object file for ARM."""
    machine = Machine(
        "aarch64-unknown-linux-gnu", "generic", ",".join(f"+{need}" for need in isa.needs), "default", "jitdefault"
    )
    # A process compiles for one machine, so not in this one.
    ((_, code),) = compile_jobs([Job(kernel, isa, "kernel", machine)], 2)
    return [word for (word,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4])]


def count(words: list[int], instruction: tuple[int, int]) -> int:
    mask, bits = instruction
    return sum(word & mask == bits for word in words)


@pytest.mark.parametrize("kernel", ["matmul_q4_0", "matmul_q8_0", "matmul_q4_k", "matmul_iq4_nl"])
def test_dot_products_take_activations_by_element(kernel):
    words = code_of(kernel, ISAS["dotprod"])
    by_element, whole = count(words, _SDOT_BY_ELEMENT), count(words, _SDOT)
    assert by_element >= 7 * 2 * 8, "seven rows at once, two and one: two registers, eight words of a block each"
    assert by_element > 10 * whole


def test_without_dot_products_none_is_used():
    words = code_of("matmul_q8_0", ISAS["neon"])
    assert count(words, _SDOT) == count(words, _SDOT_BY_ELEMENT) == 0
    assert count(words, _SMULL) and count(words, _SMLAL)


def test_what_the_auxiliary_vector_says():
    assert not arm_features(0, 0)
    pi_4, pi_5 = 1 << 1, 1 << 1 | 1 << 20
    assert arm_features(pi_4, 0).issuperset(ISAS["neon"].needs)
    assert not arm_features(pi_4, 0).issuperset(ISAS["dotprod"].needs)
    assert arm_features(pi_5, 0).issuperset(ISAS["dotprod"].needs)
