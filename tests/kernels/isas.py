"""The instruction sets that tests run: those of this processor, and the wide code paths on narrow registers.

What is tested where follows from what a kernel's code depends on (`kernel_code.known_isa`): products on every set
(`IMPLEMENTATIONS`), all else on a set for each number of lanes (`LANES`), since other sets' code is the same.
"""

from edgerun import paths
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import kernel_names
from edgerun.kernels.isa import ISAS, Isa, runs_here
from edgerun.kernels.kernel_code import SOURCES

IMPLEMENTATIONS = [isa for isa in ISAS.values() if runs_here(isa)]
if IMPLEMENTATIONS[0].name == "amx":  # all of avx512vbmi's code is in it, for fewer rows than tiles take
    IMPLEMENTATIONS.remove(ISAS["avx512vbmi"])

# The 16-lane layout and code of AVX-512, with the dot product in plain LLVM: all of it but two instructions is
# tested on processors without.
WIDE = Isa("wide", 16, "llvm", ())
if all(isa.lanes != WIDE.lanes for isa in IMPLEMENTATIONS):
    IMPLEMENTATIONS.append(WIDE)

# What follows from the formats' declarations alike on all of them is compiled for the best set and one of narrow
# registers: every product of every type takes a second or two, or five.
_NARROW = [isa for isa in IMPLEMENTATIONS[1:] if isa.name in ("avx2", "neon", "portable")]
SOME = [IMPLEMENTATIONS[0], *_NARROW[:1]]
# A set for each number of lanes: of SOME where one of those has as many.
LANES = list({isa.lanes: isa for isa in (*reversed(IMPLEMENTATIONS), *reversed(SOME))}.values())

# A product is emitted from its format's declaration, and sets between these differ in how four codes are multiplied
# alone: there one type of each kind of code stands for the others, but with `--every-type`.
TYPICAL = (
    *(GgmlType.Q4_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.Q4_K),
    *(GgmlType.IQ4_NL, GgmlType.IQ2_S, GgmlType.F16, GgmlType.F32),
)

# Found out before any test moves the home directory: compiled kernels are good for all tests, and the next run's.
KERNELS_DIR = paths.cache_dir() / "kernels"


def needed_kernels(isa: Isa) -> list[str]:
    """Names of the kernels that tests of a set call."""
    if isa in SOME:
        return list(SOURCES)
    of_types = kernel_names.with_forms(kernel_names.for_matrices(TYPICAL), isa)
    by_lanes = [name for name in SOURCES if not name.startswith(("matmul_", "pack_", "neurons_", "dequantize_"))]
    return list(dict.fromkeys([*(by_lanes if isa in LANES else kernel_names.ALWAYS), *of_types]))
