"""The instruction sets that tests run: those of this processor, and the wide code paths on narrow registers."""

from edgerun import paths
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.isa import ISAS, Isa, runs_here
from edgerun.kernels.kernel_code import SOURCES

# The 16-lane layout and code of AVX-512, with the dot product in plain LLVM: all of it but two instructions is
# tested on any processor.
WIDE = Isa("wide", 16, "llvm", ())
IMPLEMENTATIONS = [isa for isa in [*ISAS.values(), WIDE] if runs_here(isa)]
if IMPLEMENTATIONS[0].name == "amx":  # all of avx512vbmi's code is in it, for fewer rows than tiles take
    IMPLEMENTATIONS.remove(ISAS["avx512vbmi"])

# What follows from the formats' declarations alike on all of them is compiled for the best, for narrow registers and
# for plain LLVM: every kernel of every type takes a second or two.
SOME = [IMPLEMENTATIONS[0], *(isa for isa in IMPLEMENTATIONS[1:] if isa.name in ("avx2", "neon", "portable"))]

# A product is emitted from its format's declaration, and sets between these differ in how four codes are multiplied
# alone: there one type of each kind of code stands for the others, but with `--every-type`.
TYPICAL = (
    *(GgmlType.Q4_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q6_K, GgmlType.IQ4_NL),
    *(GgmlType.IQ2_S, GgmlType.IQ1_S, GgmlType.TQ1_0, GgmlType.F16),
)

# Found out before any test moves the home directory: compiled kernels are good for all tests, and the next run's.
KERNELS_DIR = paths.cache_dir() / "kernels"


def needed_kernels(isa: Isa) -> list[str]:
    """Names of the kernels that tests of a set call."""
    left = [format.name for type, format in FORMATS.items() if type not in TYPICAL]
    if isa in SOME:
        return list(SOURCES)
    alike = {f"{task}_{name}" for task in ("matmul", "pack") for name in left}
    return [name for name in SOURCES if name not in alike and not name.startswith(("neurons_", "dequantize_"))]
