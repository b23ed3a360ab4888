"""What `edgerun profile` says that a model should reach, by the machine's rates beside it, against what it reaches.

python benchmarks/profile_accuracy.py MODEL.gguf[@MEMORY,...] ... [-p 256] [-n 64] [-r 3] [--json out.json]

A model is measured in memory, and with every MEMORY that is named (`big.gguf@2G,3G`); each is one `edgerun profile`,
which measures the machine before the first run and after each, repeats what others disturbed, and plans by the rates
around every run. Prints a table for docs/profiling.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.device import cpu_name


@dataclass(frozen=True)
class Line:
    """One case: tokens/s by plan and by measurement."""

    model: str
    memory: str
    phase: str
    planned: float
    measured: float
    noisy: bool

    @property
    def error(self) -> float:
        return abs(self.planned / self.measured - 1)


def profiled(model: Path, memory: str, a: argparse.Namespace) -> dict[str, Any]:
    """What `edgerun profile` says of one model with so much memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile.json"
        options = ["-c", str(a.prompt + a.decode + 8), "-p", str(a.prompt), "-n", str(a.decode), "-t", str(a.threads)]
        options += ["-r", str(a.repetitions), "-o", str(out)] + ([] if memory == "all" else ["--memory", memory])
        command = [sys.executable, "-m", "edgerun", "profile", str(model), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def lines_of(report: dict[str, Any], model: str, memory: str) -> list[Line]:
    """The prompt and the decoding."""
    noisy = bool(report["noise"]["is_noisy"])
    return [
        Line(model, memory, phase, report[phase]["planned_tok_s"], report[phase]["median_tok_s"], noisy)
        for phase in ("prompt", "decode")
    ]


def table(lines: list[Line]) -> str:
    """Markdown, the figures of all of them last."""
    rows = ["| model | memory | phase | planned tok/s | measured | planned ÷ measured |", "|---|---|---|--:|--:|--:|"]
    for each in lines:
        noisy = " (noisy)" if each.noisy else ""
        rows.append(
            f"| {each.model} | {each.memory} | {each.phase} | {each.planned:.1f} | {each.measured:.1f}{noisy} | "
            f"{each.planned / each.measured:.2f} |"
        )
    errors = [each.error for each in lines]
    mean = math.exp(statistics.fmean(math.log(each.planned / each.measured) for each in lines))
    rows.append(
        f"\n{len(lines)} cases: median error {100 * statistics.median(errors):.0f} %, "
        f"worst {100 * max(errors):.0f} %, planned ÷ measured {mean:.2f} on average"
    )
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf[@MEMORY,...]")
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--decode", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures, and go on with what stands there")
    a = parser.parse_args()
    told: dict[str, dict[str, Any]] = {}
    if a.json is not None and a.json.exists():
        told = json.loads(a.json.read_text())["profiles"]
    lines: list[Line] = []
    for given in a.models:
        name, _, memories = given.partition("@")
        for memory in ["all", *(memories.split(",") if memories else [])]:
            model = Path(name)
            case = f"{model.stem}@{memory}"
            if case not in told:
                told[case] = profiled(model, memory, a)
                if a.json is not None:
                    a.json.write_text(json.dumps({"processor": cpu_name(), "profiles": told}))
            for line in lines_of(told[case], model.stem, memory):
                lines.append(line)
                said = f"planned {line.planned:.1f}, measured {line.measured:.1f}"
                print(f"{line.model} {line.memory} {line.phase}: {said}", file=sys.stderr)
    print(f"{cpu_name()}, {a.threads} threads\n\n{table(lines)}")


if __name__ == "__main__":
    main()
