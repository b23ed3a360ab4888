"""Instruction sets: what the same kernels are generated for, and which of them this processor runs.

A kernel works on `lanes` weight rows at once, one 32-bit lane a row. What differs between processors, above all how
four codes of each row are multiplied with four activations, is in `ops`; here stands which features a set needs and
how much its registers hold. An instruction that the processor lacks would end the process, so `find` looks at the
system's list of features first. `choice` says which set "auto" is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgerun.device.cpu_features import cpu_features
from edgerun.errors import UsageError


@dataclass(frozen=True)
class Tiles:
    """Rows of activations and groups of weight rows that a product does together. several: as many rows as registers
    hold, then fewer for what is left; one: groups for a single row."""

    several: tuple[tuple[int, int], ...] = ((4, 1), (2, 1))
    one: int = 1

    @property
    def together(self) -> int:
        """Groups of weight rows that whole tiles of every kind fill."""
        return max(self.one, *(groups for _, groups in self.several))


@dataclass(frozen=True)
class Isa:
    """One instruction set: how many rows at once, which dot product, which processor features it needs."""

    name: str
    lanes: int
    dot: str  # which `ops` multiply; "llvm": plain LLVM, any processor
    needs: tuple[str, ...]
    tiles: Tiles = Tiles()  # of quantised weights
    tile_products: bool = False  # whether many rows are multiplied by tiles (`tile_products`)
    # Of floats, which need no registers for codes and scales, but many sums: one waits four cycles for itself.
    float_tiles: Tiles = Tiles(((6, 2), (4, 2), (2, 2)), 2)
    # Whether a single row asks for codes of less than a byte, whose fields lie apart, into the second level of caches
    second_level: bool = False


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "f16c", "fma")
_WIDE: dict[str, Any] = {
    "tiles": Tiles(((8, 1), (4, 2), (2, 2))),
    "float_tiles": Tiles(((8, 2), (4, 2), (2, 2)), 2),
}

_VBMI = (*_AVX512, "avx512vnni", "avx512vbmi", "gfni")

ISAS = {
    "amx": Isa("amx", 16, "avx512vbmi", (*_VBMI, "amx-tile", "amx-int8", "amx-bf16"), tile_products=True, **_WIDE),
    # A Zen 4 has too few reads under way into its first level for what memory gives: into the second, types of less
    # than a byte a weight are 1.2 to 2.4 times as fast from memory (docs/kernels.md). Not measured with AMX; no gain
    # on a Zen 5.
    "avx512vbmi": Isa("avx512vbmi", 16, "avx512vbmi", _VBMI, second_level=True, **_WIDE),
    "avx512vnni": Isa("avx512vnni", 16, "avx512vnni", (*_AVX512, "avx512vnni"), **_WIDE),
    "avx512": Isa("avx512", 16, "avx512", _AVX512, **_WIDE),
    "avxvnni": Isa("avxvnni", 8, "avxvnni", ("avx2", "f16c", "fma", "avxvnni")),
    "avx2": Isa("avx2", 8, "avx2", ("avx2", "f16c", "fma")),
    "dotprod": Isa("dotprod", 8, "dotprod", ("neon", "dotprod")),
    # By predictions a tenth faster on some, slower on others, so it is taken where it was measured (`choice`).
    "i8mm": Isa("i8mm", 8, "i8mm", ("neon", "dotprod", "i8mm"), tiles=Tiles(((6, 1), (4, 1), (2, 1)))),
    "neon": Isa("neon", 8, "neon", ("neon",), tiles=Tiles(((2, 1),))),  # sums of pairs apart: four rows would spill
    "portable": Isa("portable", 8, "llvm", (), float_tiles=Tiles(((4, 1), (2, 1)), 2)),
}  # best first


def runs_here(isa: Isa) -> bool:
    """Whether this processor has every instruction of `isa`."""
    return cpu_features().issuperset(isa.needs)


def find(name: str) -> Isa:
    """The instruction set called `name`. Raises UsageError when it cannot run here."""
    isa = ISAS[name]
    if not runs_here(isa):
        missing = ", ".join(need for need in isa.needs if need not in cpu_features())
        usable = ", ".join(other.name for other in ISAS.values() if runs_here(other))
        raise UsageError(f"this processor cannot run the {name} kernels (it lacks {missing}); use one of {usable}")
    return isa
