"""What `edgerun plan` says of a request against what `edgerun bench` measures, as a table for docs/profiling.md.

nice -n -20 python benchmarks/profile_accuracy.py MODEL.gguf[@MEMORY,...][%TRACE.json] ... [-p 256] [-n 64] [-r 3]
    [--json out.json]

Not under real-time priority: what reads a disk wakes up often, and would wait there for what computes.

A model is measured in memory, and with every MEMORY that is named (`big.gguf@2G,3G`); TRACE: what a synthetic mixture
replays. The machine is measured anew just before and after every run, and the mean of both predictions counts: a shared
machine changes from minute to minute, which is not what is tested. For the same reason what was measured is the median
of the prompts and, in memory, where all tokens take alike, of the tokens; where they wait for a disk it is their mean.
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


def run_json(command: list[str]) -> dict[str, Any]:
    """The JSON object that a command prints."""
    done = subprocess.run([sys.executable, "-m", "edgerun", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"edgerun {' '.join(command)} failed: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def measure(
    model: Path, memory: str, routing: Path | None, a: argparse.Namespace
) -> tuple[list[Line], dict[str, object]]:
    """The prompt and the decoding of one model with so much memory, and all that plans and measurement said."""
    options = ["-c", str(a.prompt + a.decode + 8), "-p", str(a.prompt), "-n", str(a.decode), "-t", str(a.threads)]
    options += [] if memory == "all" else ["--memory", memory]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as replayed:
        plan = ["plan", str(model), "--json", "--measure", *options]
        if routing is not None and memory != "all":
            json.dump(json.loads(routing.read_text())[: a.prompt + a.decode], replayed)
            replayed.flush()
            plan += ["--routing", replayed.name]
        plans = [run_json(plan)]
        bench = run_json(["bench", str(model), "--json", "--warmup", "-r", str(a.repetitions), *options])
        plans.append(run_json(plan))
    requests = [each["request"] for each in plans]
    prompt_s = statistics.geometric_mean(each["prompt_s"] for each in requests)
    token_s = statistics.geometric_mean(each["token_s"] for each in requests)
    deviations = [(bench[f"{phase}_tok_s_sd"] or 0.0) / bench[f"{phase}_tok_s"] for phase in ("prompt", "decode")]
    prompt_tok_s = 1e3 * a.prompt / bench["ttft_p50_ms"]
    decode_tok_s = 1e3 / bench["decode_p50_ms"] if memory == "all" else bench["decode_tok_s"]
    lines = [
        Line(model.stem, memory, "prompt", a.prompt / prompt_s, prompt_tok_s, deviations[0] > 0.05),
        Line(model.stem, memory, "decode", 1 / token_s, decode_tok_s, deviations[1] > 0.05),
    ]
    return lines, {"lines": [vars(each) for each in lines], "plans": plans, "bench": bench}


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
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf[@MEMORY,...][%TRACE.json]")
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--decode", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures")
    a = parser.parse_args()
    lines: list[Line] = []
    told: list[dict[str, object]] = []
    for given in a.models:
        given, _, trace = given.partition("%")
        name, _, memories = given.partition("@")
        for memory in ["all", *(memories.split(",") if memories else [])]:
            found, said_all = measure(Path(name), memory, Path(trace) if trace else None, a)
            told.append(said_all)
            for line in found:
                lines.append(line)
                said = f"planned {line.planned:.1f}, measured {line.measured:.1f}"
                print(f"{line.model} {line.memory} {line.phase}: {said}", file=sys.stderr)
    if a.json is not None:
        a.json.write_text(json.dumps({"processor": cpu_name(), "cases": told}))
    print(f"{cpu_name()}, {a.threads} threads\n\n{table(lines)}")


if __name__ == "__main__":
    main()
