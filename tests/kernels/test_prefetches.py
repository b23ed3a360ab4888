"""Into which level of caches a product asks for its weights, seen in its machine code from any processor."""

from __future__ import annotations

import pytest

from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.isa import ISAS
from edgerun.kernels.numba_target import Machine

_PREFETCH = b"\x0f\x18"  # of x86; bits 3 to 5 of the next byte are the level


@pytest.mark.parametrize(
    ("isa", "kernel", "level"),
    [("avx512vbmi", "matmul_q6_k", 2), ("avx512vbmi", "matmul_q8_0", 1), ("avx512vnni", "matmul_q6_k", 1)],
)
def test_weights_are_asked_for_into_the_level_of_their_set_and_type(isa, kernel, level):
    machine = Machine(
        "x86_64-unknown-linux-gnu", "x86-64", ",".join(f"+{need}" for need in ISAS[isa].needs), "static", "jitdefault"
    )
    said = []
    ((_, code),) = compile_jobs([Job(kernel, ISAS[isa], "kernel", machine)], 2, said.append)
    assert not said, "a process compiles for one machine, so not this one"
    levels = [part[0] >> 3 & 7 for part in code.split(_PREFETCH)[1:] if part]
    assert levels.count(level) > 50
    assert levels.count(3 - level) == 0
