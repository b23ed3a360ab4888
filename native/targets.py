"""For which platforms libraries are built, and what links them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgerun.errors import UsageError
from edgerun.kernels.isa import Isa
from edgerun.kernels.library import platform_name
from edgerun.kernels.numba_target import Machine


@dataclass(frozen=True)
class Target:
    """A platform. name: as compilers call it; platform: as `edgerun.kernels.library` does; triple: LLVM's; zig: zig's;
    cpu: the least processor, to which an instruction set adds what it needs; features: what all of them have."""

    name: str
    platform: str
    triple: str
    zig: str
    cpu: str
    features: tuple[str, ...] = ()
    wheel: str = ""  # platform tags of a wheel

    def machine(self, isa: Isa) -> Machine:
        """Any processor of the platform with the instruction set."""
        features = ",".join(f"+{feature}" for feature in (*self.features, *isa.needs))
        return Machine(self.triple, self.cpu, features, "pic", "small")


_X86, _ARM = ("x86-64", ()), ("generic", ("neon",))
TARGETS = {
    target.name: target
    for target in (
        Target(
            *("x86_64-linux-gnu", "x86_64-linux", "x86_64-unknown-linux-gnu", "x86_64-linux-gnu", *_X86),
            wheel="manylinux_2_17_x86_64.musllinux_1_1_x86_64",
        ),
        Target(
            *("aarch64-linux-gnu", "aarch64-linux", "aarch64-unknown-linux-gnu", "aarch64-linux-gnu", *_ARM),
            wheel="manylinux_2_17_aarch64.musllinux_1_1_aarch64",
        ),
        Target(
            *("aarch64-linux-android", "aarch64-android", "aarch64-unknown-linux-android24", "aarch64-linux-musl"),
            *_ARM,  # zig links for musl: no C library is linked in, and none is asked for by name
            wheel="android_24_arm64_v8a",
        ),
        Target(
            *("aarch64-macos", "arm64-macos", "arm64-apple-macosx11.0.0", "aarch64-macos", *_ARM),
            wheel="macosx_11_0_arm64",
        ),
    )
}


def host_target() -> str:
    """The name of the target that this process runs on. UsageError where there is none."""
    for target in TARGETS.values():
        if target.platform == platform_name():
            return target.name
    raise UsageError(f"libraries for {platform_name()} cannot be built yet; targets: {', '.join(TARGETS)}")


def link_command(target: Target, objects: Sequence[Path], out: Path) -> list[str]:
    """What makes a library of objects: the distribution's linker for the target, else PyPI's ziglang. It needs no C
    library: `sched_yield` and `clock_gettime`, all that kernels ask for, are found in the process. UsageError where
    there is no linker."""
    files = [str(each) for each in objects]
    elf = ["-shared", "-s", "-Bsymbolic", "--hash-style=gnu", "-z", "noexecstack", "-z", "max-page-size=16384"]
    names = [f"{target.name}-ld", "ld.lld"]
    if target.platform == platform_name() and sys.platform == "linux":
        names.append("ld")
    linker = next((found for name in names if (found := shutil.which(name))), None)
    if linker is not None and not target.platform.endswith("macos"):
        return [linker, *elf, "-o", str(out), *files]
    if find_spec("ziglang") is None:
        raise UsageError(f"no linker for {target.name}: neither {', '.join(names)} nor ziglang (pip install ziglang)")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig, "-shared", "-s"]
    if not target.platform.endswith("macos"):  # there the system library is always linked
        zig += ["-nostdlib", "-Wl,-Bsymbolic", "-Wl,-z,max-page-size=16384"]
    return [*zig, "-o", str(out), *files]
