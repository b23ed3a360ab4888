"""What a kernel computes does not depend on which others are loaded, in which order, nor on who compiled them."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from edgerun.kernels.choice import choose
from edgerun.kernels.compile import file_name
from edgerun.kernels.kernel_code import SOURCES
from tests.kernels import orders
from tests.kernels.isas import KERNELS_DIR

# Each set shares helpers of the same names that differ in what they compute.
COLLIDING = ("matmul_q4_0", "matmul_q8_0", "matmul_q4_k")


def test_kernels_compiled_one_by_one_and_loaded_in_any_order(tmp_path: Path):
    isa = choose("auto")
    kept = tmp_path / "kernels"
    kept.mkdir(mode=0o700)
    for name in SOURCES:  # what products need beside
        path = KERNELS_DIR / file_name(name, isa)
        if name not in COLLIDING and path.is_file():
            shutil.copy(path, kept)
    orders.fill(isa.name, kept, [[name] for name in COLLIDING])
    seed = secrets.randbelow(1 << 32)
    wrong = orders.load(isa.name, kept, seed, 30, COLLIDING)
    assert not wrong, f"30 orders from seed {seed}"
