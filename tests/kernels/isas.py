"""The instruction sets that tests run: those of this processor, and the wide code paths on narrow registers."""

from edgerun import paths
from edgerun.kernels.isa import ISAS, Isa, runs_here

# The 16-lane layout and code of AVX-512, with the dot product in plain LLVM: all of it but two instructions is
# tested on any processor.
WIDE = Isa("wide", 16, "llvm", ())
IMPLEMENTATIONS = [isa for isa in [*ISAS.values(), WIDE] if runs_here(isa)]
if IMPLEMENTATIONS[0].name == "amx":  # all of avx512vbmi's code is in it, for fewer rows than tiles take
    IMPLEMENTATIONS.remove(ISAS["avx512vbmi"])

# What follows from the formats' declarations alike on all of them is compiled for the best, for narrow registers and
# for plain LLVM: every kernel of every type takes a second or two.
SOME = [IMPLEMENTATIONS[0], *(isa for isa in IMPLEMENTATIONS[1:] if isa.name in ("avx2", "neon", "portable"))]

# Found out before any test moves the home directory: compiled kernels are good for all tests, and the next run's.
KERNELS_DIR = paths.cache_dir() / "kernels"
