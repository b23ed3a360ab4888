"""Kernel libraries, one for each instruction set, and their C header.

python -m native.build                                          for this machine, all that it runs
python -m native.build --target aarch64-linux-gnu --isa portable --output dist/libs
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from edgerun.device import usable_cpus
from edgerun.errors import EdgerunError, UsageError
from edgerun.kernels.compile import kernel_digest
from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.isa import ISAS, Isa, runs_here
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.library import ABI_VERSION, TABLE, library_name, platform_name
from edgerun.kernels.numba_target import Machine
from native.header import c_header
from native.targets import TARGETS, Target, host_target, link_command

_HALVES = Path(__file__).with_name("halves.ll")


def build_library(target: Target, isa: Isa, output: Path, names: Sequence[str] = tuple(SOURCES)) -> Path:
    """The library of an instruction set in the folder `output`; returns its path. UsageError without a linker."""
    output.mkdir(parents=True, exist_ok=True)
    machine = target.machine(isa)
    jobs = [Job(name, isa, f"edgerun_{name}", machine) for name in names]
    with tempfile.TemporaryDirectory(dir=output) as work:
        objects = []
        for job, code in compile_jobs(jobs, max(2, len(usable_cpus()))):
            objects.append(Path(work, f"{job.name}.o"))
            objects[-1].write_bytes(code)
        for name, text in (("table", _table(target, isa, machine, names)), ("halves", _HALVES.read_text())):
            objects.append(Path(work, f"{name}.o"))
            objects[-1].write_bytes(_assembled(text, machine))
        made = Path(work, library_name(isa.name, target.platform))
        done = subprocess.run(link_command(target, sorted(objects), made), capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(f"the linker fails: {done.stderr.strip()}")
        made.chmod(0o644)
        return made.replace(output / made.name)  # whole: a process may have the old one loaded


def _table(target: Target, isa: Isa, machine: Machine, names: Sequence[str]) -> str:
    """What `edgerun.kernels.library` reads, in LLVM's language."""
    built = f"numba {version('numba')}, llvmlite {version('llvmlite')}, {target.name} {machine.cpu} {machine.features}"
    lines = [f"declare void @edgerun_{name}()" for name in names]
    entries = []
    for i, name in enumerate(names):
        lines += [_text(f"name{i}", name), _text(f"digest{i}", kernel_digest(name, isa))]
        entries.append(f"{{ptr, ptr, ptr}} {{ptr @name{i}, ptr @digest{i}, ptr @edgerun_{name}}}")
    lines += [_text("isa", isa.name), _text("built", built.strip())]
    lines.append(f"@kernels = private constant [{len(names)} x {{ptr, ptr, ptr}}] [{', '.join(entries)}]")
    head = f"i64 {ABI_VERSION}, i64 {len(names)}, ptr @isa, ptr @built, ptr @kernels"
    lines.append(f"@{TABLE} = constant {{i64, i64, ptr, ptr, ptr}} {{{head}}}")
    return "\n".join(lines)


def _assembled(text: str, machine: Machine) -> bytes:
    """Object code of LLVM's language."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(text)
    made_for = llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, reloc=machine.relocation, codemodel=machine.code_model
    )
    module.triple, module.data_layout = machine.triple, str(made_for.target_data)
    return bytes(made_for.emit_object(module))


def _text(name: str, text: str) -> str:
    return f'@{name} = private constant [{len(text) + 1} x i8] c"{text}\\00"'


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m native.build", description="Build kernel libraries.")
    parser.add_argument("--target", choices=TARGETS, help="the platform (default: this one)")
    parser.add_argument("--isa", nargs="+", choices=ISAS, help="instruction sets (default: all that this machine runs)")
    parser.add_argument("--output", type=Path, default=Path("dist/libs"), help="a folder (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        target = TARGETS[arguments.target or host_target()]
        if arguments.isa is None and target.platform != platform_name():
            parser.error("another machine's instruction sets must be named: --isa")
        for isa in [ISAS[name] for name in arguments.isa or ISAS if arguments.isa or runs_here(ISAS[name])]:
            print(build_library(target, isa, arguments.output))
        header = arguments.output / "edgerun_kernels.h"
        header.write_text(c_header())
        print(header)
    except EdgerunError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
