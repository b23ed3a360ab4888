"""Models larger than memory, edgerun and llama.cpp in turn under the same hard cap. Needs root and control groups.

python benchmarks/streaming.py MODEL.gguf --cap 2G --llamacpp-python VENV/bin/python [-p 0] [-n 90] [-r 3]
    [--routing TRACE.json]   (what a synthetic file replays: plan predicts with its hits)
    [--used-by FILE ...]     (of which the page cache is full before each run, as that of a machine in use)

Every run of edgerun begins with an empty cache, or (--warm) with the hot set that a first, uncounted run has kept.
Prints medians, their ratio, what `edgerun plan` predicted, and the share of the law's bound that was reached:
min(1 / compute time, disk rate / bytes missing a token). The plan is made just before and after each run, the machine
measured anew, and compared with that run: the one before for the tokens that the run counts, from the cache that it
begins with, both for a full cache; also at the disk rate that the run reached: what is left then is not the disk's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capped import run_capped
from side_by_side import LLAMA_CPP

from edgerun.api.weights import hot_set_path
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec
from edgerun.planning.speed import layers_ahead, token_s
from edgerun.units import format_size, parse_size_bytes


def report_of(command: list[str], cap: int, used_by: Sequence[Path]) -> dict[str, Any]:
    """The JSON that a command prints under the cap, with the kernel's peak."""
    done = run_capped(command, cap, used_by=used_by)
    if done.code:
        raise SystemExit(f"{command[0]} failed ({done.code}): {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    if done.peak_bytes > cap:
        raise SystemExit(f"the kernel counted {done.peak_bytes} bytes, more than the cap of {cap}")
    return {**found, "peak_mib": done.peak_bytes >> 20}


def median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(run.get(key) or 0.0) for run in runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cap", required=True)
    parser.add_argument("--llamacpp-python", help="interpreter with llama-cpp-python; without it edgerun runs alone")
    parser.add_argument("-p", "--prompt", type=int, default=0)
    parser.add_argument("-n", "--decode", type=int, default=90)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--routing", type=Path)
    parser.add_argument("--warm", action="store_true", help="begin with the hot set that a run before has kept")
    parser.add_argument(
        "--used-by", type=Path, nargs="*", default=[], help="other files, to fill the page cache with before each run"
    )
    parser.add_argument("--options", default="", help="more options of `edgerun bench`, e.g. --no-prefetch")
    a = parser.parse_args()
    cap = parse_size_bytes(a.cap)
    edgerun = [sys.executable, "-m", "edgerun"]
    limits = ["-t", str(a.threads), "-c", str(max(64, a.prompt + a.decode))]
    bench = [*edgerun, "bench", str(a.model), "-r", "1", "--json", *limits, *a.options.split()]
    bench += ["-p", str(a.prompt), "-n", str(a.decode)]
    theirs = [a.llamacpp_python, "-c", LLAMA_CPP, str(a.model), str(a.prompt), str(a.decode), str(a.threads), "mmap"]
    ours_runs, their_runs, plans, disk = [], [], [], []
    if a.warm:
        report_of(bench, cap, a.used_by)
    for _ in range(a.repetitions):
        if a.llamacpp_python:
            their_runs.append(report_of(theirs, cap, a.used_by))
        if not a.warm:
            forget_hot_set(a.model)
        around = [plan(edgerun, a, limits)]
        ours_runs.append(report_of(bench, cap, a.used_by))
        around.append(plan(edgerun, a, limits))
        plans.append(around)
        disk.append(statistics.fmean(said["rates"]["disk_bytes_per_s"] for said in around))
    said = plans[-1][-1]
    planned = said["speed"]
    rate = statistics.median(disk) / 1e9
    start = "warm" if a.warm else "from empty"
    print(f"{a.model.name}, cap {format_size(cap)}, {start}, medians of {a.repetitions}, disk {rate:.2f} GB/s")
    for key in ("prompt_tok_s", "decode_tok_s", "decode_p50_ms", "decode_p95_ms", "load_s", "peak_mib"):
        mine = median(ours_runs, key)
        line = f"{key:14s} edgerun {mine:9.2f}"
        if their_runs and median(their_runs, key):
            line += f"   llama.cpp {median(their_runs, key):9.2f}   ratio {mine / median(their_runs, key):5.2f}"
        print(line)
    if a.decode and "read_bytes_per_token" in ours_runs[0]:
        shares: list[float] = []
        asked: list[float] = []
        probed: list[float] = []
        reached: list[float] = []
        for run, rate, around in zip(ours_runs, disk, plans, strict=True):
            reading = max(1.0, run["read_bytes_per_token"]) / rate
            computing = statistics.fmean(each["speed"]["compute_s_per_token"] for each in around)
            shares.append(run["decode_tok_s"] * max(reading, computing))
            asked.append(1 / around[0]["request"]["later_token_s"] / run["decode_tok_s"])
            for ratios, disk_rate in ((probed, None), (reached, run.get("disk_bytes_per_s", rate))):
                expected = statistics.fmean(predicted(a.model, each, disk_rate) for each in around)
                ratios.append(expected / run["decode_tok_s"])
        missing = median(ours_runs, "read_bytes_per_token") / 1e6
        print(f"hits {100 * median(ours_runs, 'hit_rate'):.1f} %, {missing:.1f} MB/token, "
              f"stalls {1e3 * median(ours_runs, 'stall_s_per_token'):.1f} ms/token")  # fmt: skip
        print(f"share of the bound {statistics.median(shares):.2f}")
        print(f"while it read, the disk gave {median(ours_runs, 'disk_bytes_per_s') / 1e9:.2f} GB/s")
        for how, ratios in (
            ("before the run, of these tokens", asked),
            ("of a full cache", probed),
            ("of a full cache, at the disk rate reached in the run", reached),
        ):
            print(f"planned / measured, {how}: {', '.join(f'{each:.2f}' for each in ratios)}")
    print(
        f"planned: decode {planned['decode_tok_s']:.2f} tok/s, 256 tokens in {planned['first_token_s']:.2f} s; "
        f"hits {100 * planned['hit_rate']:.1f} %, {planned['read_bytes_per_token'] / 1e6:.1f} MB/token, computing "
        f"{1e3 * planned['compute_s_per_token']:.1f} ms, disk {said['rates']['disk_bytes_per_s'] / 1e9:.2f} GB/s, "
        f"products {max(r['decode_bytes_per_s'] for r in said['rates']['products'].values()) / 1e9:.1f} GB/s"
    )


def plan(edgerun: list[str], a: argparse.Namespace, limits: list[str]) -> dict[str, Any]:
    """What `edgerun plan` says, with the machine measured anew and the hits of what the runs replayed."""
    command = [*edgerun, "plan", str(a.model), "--json", "--measure", "--memory", a.cap, *limits]
    command += ["-p", str(a.prompt), "-n", str(a.decode)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as routing:
        if a.routing is not None:
            json.dump(json.loads(a.routing.read_text())[: a.prompt + a.decode], routing)
            routing.flush()
            command += ["--routing", routing.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def predicted(model: Path, said: dict[str, Any], disk_bytes_per_s: float | None) -> float:
    """Tokens/s that the plan `said` names, or would have named for a disk of this rate."""
    speed = said["speed"]
    if disk_bytes_per_s is None:
        return float(speed["decode_tok_s"])
    with open_gguf(model) as gguf:
        spec = load_spec(gguf)
    used = spec.n_experts_used if said["mode"] == "experts" else 0
    reading = speed["read_bytes_per_token"] / disk_bytes_per_s
    return 1 / token_s(
        speed["compute_s_per_token"],
        reading,
        speed["hit_rate"],
        spec.n_layers,
        used,
        layers_ahead(spec),
        pack_s=speed["pack_s_per_token"],
    )


def forget_hot_set(model: Path) -> None:
    """What an earlier run of the model kept."""
    with open_gguf(model) as gguf:
        hot_set_path(gguf).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
