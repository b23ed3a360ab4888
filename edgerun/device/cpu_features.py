"""What this processor can do, by LLVM's names, asked of the operating system: neither LLVM nor Numba is imported.

Linux and Android list it (x86: `/proc/cpuinfo`, ARM: the auxiliary vector, which also tells the truth under emulation),
macOS answers by name. Where nobody else can say, LLVM is asked, if it is installed.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import lru_cache
from pathlib import Path

from edgerun.device.cgroup import read_text

_X86 = {  # Linux -> LLVM
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}
_TILES = frozenset(("amx-tile", "amx-int8", "amx-bf16"))
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # of Linux on x86-64
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_ARM = {  # LLVM -> (word of the auxiliary vector, bit), from the kernel's asm/hwcap.h
    "neon": (_AT_HWCAP, 1),
    "fullfp16": (_AT_HWCAP, 10),
    "dotprod": (_AT_HWCAP, 20),
    "sve": (_AT_HWCAP, 22),
    "sve2": (_AT_HWCAP2, 1),
    "i8mm": (_AT_HWCAP2, 13),
    "bf16": (_AT_HWCAP2, 14),
}
_MACOS = {  # LLVM -> sysctl
    "neon": "hw.optional.AdvSIMD",
    "fullfp16": "hw.optional.arm.FEAT_FP16",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "avx2": "hw.optional.avx2_0",
    "fma": "hw.optional.fma",
    "f16c": "hw.optional.f16c",
    "avx512f": "hw.optional.avx512f",
    "avx512bw": "hw.optional.avx512bw",
    "avx512vl": "hw.optional.avx512vl",
    "avx512dq": "hw.optional.avx512dq",
    "avx512vnni": "hw.optional.avx512vnni",
}


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """LLVM's names of the features that this processor has ("avx2", "avx512vnni", "dotprod", ...), of those at least
    that kernels ask for. Empty when nobody can tell."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return frozenset(name for name, key in _MACOS.items() if _sysctl(key))
    if sys.platform in ("linux", "android"):
        if machine in ("x86_64", "amd64", "i686"):
            found = x86_features(read_text(Path("/proc/cpuinfo")))
            return found if not found & _TILES or _may_use_tiles() else found - _TILES
        if machine in ("aarch64", "arm64"):
            return arm_features(_auxiliary(_AT_HWCAP), _auxiliary(_AT_HWCAP2))
    return _llvm_features()


def x86_features(cpuinfo: str) -> frozenset[str]:
    """From the text of `/proc/cpuinfo`, which leaves out what the system does not save for processes."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(_X86.get(flag, flag.replace("_", "")) for flag in value.split())
    return frozenset()


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of AMX, which it gives to a process, with all of its threads, that wants them."""
    if sys.platform != "linux" or sys.maxsize <= 1 << 32:
        return False
    ask = ctypes.CDLL(None).syscall
    ask.restype, ask.argtypes = ctypes.c_long, [ctypes.c_long] * 3
    return int(ask(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)) == 0


def arm_features(hwcap: int, hwcap2: int) -> frozenset[str]:
    """From two words of the auxiliary vector."""
    words = {_AT_HWCAP: hwcap, _AT_HWCAP2: hwcap2}
    return frozenset(name for name, (word, bit) in _ARM.items() if words[word] >> bit & 1)


def _auxiliary(key: int) -> int:
    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(ask(key))


def _sysctl(name: str) -> bool:
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    ask = ctypes.CDLL(None).sysctlbyname
    return ask(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value != 0


def _llvm_features() -> frozenset[str]:
    try:
        import llvmlite.binding as llvm

        found = frozenset(name for name, has in dict(llvm.get_host_cpu_features()).items() if has)
        return found - _TILES  # other systems want to be asked for them, too
    except (ImportError, RuntimeError):  # RuntimeError: LLVM cannot tell either
        return frozenset()
