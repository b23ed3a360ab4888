"""What products should take on processors that are not here: llvm-mca's cycles of their inner loops, as a table.

    python -m tools.arm.predict [--types q4_0 q8_0 q4_k] [--show]

Wants apt's llvm-22 (LLVM 19 lets Neoverse V2 dispatch 16 instructions a cycle). It counts from the first-level cache
in a steady state: what a core could take if memory gave it. For a Cortex-A76 the table of Neoverse N1 is taken (LLVM's
own is the A57's); that of Apple M4 is an older Apple core's with three vector units, the M4 has four; Zen 5's is Zen
4's, whose 512 bits go in two halves.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from edgerun.device import default_threads
from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.formats import BY_NAME
from edgerun.kernels.isa import ISAS
from edgerun.kernels.numba_target import Machine
from tools.arm.machine import CPU, TRIPLE

_LLVM = "22"
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_JUMP = re.compile(r"^(b\.\w+|cbn?z|tbn?z|b|j\w+)\b")
_TARGET = re.compile(r"0x([0-9a-f]+)(?: <.*)?$")
_PRODUCT = re.compile(r"^(?:\{vex\} )?(sdot|smmla|smlal|smull|vpdpbusd|vpmadd)")
# LLVM's Intel tables make a zeroed register wait for its old value, which no processor does; a load does not wait.
_ZEROED = re.compile(r"^vp?xor(?:ps|d|q)? (%[xyz]mm\d+), \1, \1$")
_ITERATIONS = 500


@dataclass(frozen=True)
class Processor:
    """A row of the table. `cpu`: LLVM's name of the timings; `memory`: what feeds its cores, in words."""

    name: str
    isa: str
    cpu: str
    ghz: float
    memory: str

    @property
    def arm(self) -> bool:
        return self.isa in ("neon", "dotprod", "i8mm")

    @property
    def target(self) -> Machine:
        """Code as edgerun makes it there: for any ARM with the set's features, for just this x86."""
        if self.arm:
            return Machine(TRIPLE, CPU, ",".join(f"+{need}" for need in ISAS[self.isa].needs), "pic", "small")
        return Machine("x86_64-unknown-linux-gnu", self.cpu, "", "pic", "small")


PROCESSORS = (
    Processor("Raspberry Pi 5 (Cortex-A76)", "dotprod", "neoverse-n1", 2.4, "11.4 sustained"),
    Processor("the same without `sdot`", "neon", "neoverse-n1", 2.4, "11.4 sustained"),
    Processor("Cortex-X4", "dotprod", "cortex-x4", 3.3, "77 peak"),
    Processor("Cortex-X4", "i8mm", "cortex-x4", 3.3, "77 peak"),
    Processor("Neoverse V2 (Graviton4)", "dotprod", "neoverse-v2", 3.0, "537 peak for 96 cores"),
    Processor("Neoverse V2 (Graviton4)", "i8mm", "neoverse-v2", 3.0, "537 peak for 96 cores"),
    Processor("Apple M4", "dotprod", "apple-m4", 4.4, "120 peak"),
    Processor("Apple M4", "i8mm", "apple-m4", 4.4, "120 peak"),
    Processor("Zen 5", "avx512vnni", "znver5", 5.0, "90 peak"),
    Processor("Alder Lake", "avxvnni", "alderlake", 4.9, "77 peak"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=sorted(BY_NAME), default=["q4_0", "q8_0", "q4_k"])
    parser.add_argument("--show", action="store_true", help="print the loops' assembly to the standard error")
    options = parser.parse_args()
    print("| processor (set, clock) | memory GB/s |" + "".join(f" {name} one, many |" for name in options.types))
    print("|---|---|" + "---|" * len(options.types))
    for processor in PROCESSORS:
        isa, target = ISAS[processor.isa], processor.target
        jobs = [Job(f"matmul_{name}", isa, "product", target) for name in options.types]
        # In other processes even if there is one core: a process compiles for one machine.
        code = {job.name: code for job, code in compile_jobs(jobs, max(2, default_threads()))}
        cells = [_cell(processor, name, code[f"matmul_{name}"], options.show) for name in options.types]
        print(f"| {processor.name} ({processor.isa}, {processor.ghz} GHz) | {processor.memory} | {' | '.join(cells)} |")


def _cell(processor: Processor, name: str, code: bytes, show: bool) -> str:
    """GB/s of weights that a core takes with one row of activations, and GOP/s with as many as go together."""
    isa, format = ISAS[processor.isa], BY_NAME[name]
    found = [loop for loop in loops(code) if any(map(_PRODUCT.match, loop))]
    one = next(loop for loop in found if "prf" in " ".join(loop) or "prefetch" in " ".join(loop))
    many = max(found, key=lambda loop: sum(map(bool, map(_PRODUCT.match, loop))))
    if show:
        sys.stderr.write("\n".join([f"{processor.name}, {name}, one row:", *one, "many:", *many, ""]))
    rate = format.bytes * isa.lanes * isa.tiles.one / cycles(one, processor) * processor.ghz
    operations = (
        2
        * format.cols
        * isa.lanes
        * isa.tiles.several[0][0]
        * isa.tiles.several[0][1]
        / cycles(many, processor)
        * processor.ghz
    )
    return f"{rate:.0f} GB/s, {operations:.0f} GOP/s"


def loops(code: bytes) -> list[list[str]]:
    """The innermost loops of an object file, as assembly: from a backward branch's target to the branch."""
    listing = _run(code, ".o", f"llvm-objdump-{_LLVM}", "-d", "--no-show-raw-insn")
    rows = [match.groups() for match in map(_LINE.match, listing.splitlines()) if match]
    index = {int(address, 16): i for i, (address, _, _) in enumerate(rows)}
    spans = set()
    for i, (_, name, operands) in enumerate(rows):
        target = _TARGET.search(operands) if _JUMP.match(name) else None
        if target and index.get(int(target.group(1), 16), i) < i:
            spans.add((index[int(target.group(1), 16)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[f"{name} {operands}" for _, name, operands in rows[first : last + 1]] for first, last in sorted(inner)]


def cycles(loop: list[str], processor: Processor) -> float:
    """Of an iteration."""
    body = loop if processor.arm else [line.split("#")[0].strip() for line in loop]  # "#": a comment, or a number
    body = [line for line in body if not _JUMP.match(line) and not line.startswith("nop")]
    if not processor.arm and not processor.cpu.startswith("znver"):
        body = [_ZEROED.sub(r"vbroadcastss (%rsp), \1", line) for line in body]
    machine = ["-march=aarch64", "-mattr=+dotprod,+i8mm"] if processor.arm else ["-march=x86-64"]
    text = "\n".join([*body, ""]).encode()
    said = _run(text, ".s", f"llvm-mca-{_LLVM}", *machine, f"-mcpu={processor.cpu}", f"-iterations={_ITERATIONS}")
    total = re.search(r"^Total Cycles:\s+(\d+)", said, re.MULTILINE)
    if total is None:
        raise ValueError(f"llvm-mca gave no cycles: {said[:200]}")
    return int(total.group(1)) / _ITERATIONS


def _run(content: bytes, suffix: str, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        return subprocess.run([*command, file.name], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
