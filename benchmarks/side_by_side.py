"""edgerun and llama.cpp in turn on the same file and the same token ids: medians and ratios.

python benchmarks/side_by_side.py MODEL.gguf --llamacpp-python VENV/bin/python [-p 256] [-n 48] [-r 3] [--json]
python benchmarks/side_by_side.py MODEL.gguf --llama-bench ik_llama.cpp/build/bin/llama-bench --options="-rtr 1 -thp 1"

The second measures any build of llama-bench with further options of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = ("prompt_tok_s", "decode_tok_s", "decode_p50_ms", "max_rss_mib")

LLAMA_CPP = """
import ctypes, json, resource, sys, time
import llama_cpp as L
model_path, prompt, decode, threads = sys.argv[1], *map(int, sys.argv[2:5])
quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, ctypes.c_void_p(0))
model_params = L.llama_model_default_params()
model_params.use_extra_bufts = not (len(sys.argv) > 5)  # repacking copies the weights: not under a cap
start = time.perf_counter()
model = L.llama_model_load_from_file(model_path.encode(), model_params)
if not model:
    raise SystemExit("llama.cpp cannot load it")
load_s = time.perf_counter() - start
params = L.llama_context_default_params()
params.n_ctx = max(256, prompt + decode + 8)
params.n_batch = params.n_ubatch = 512
params.n_threads = params.n_threads_batch = threads
context = L.llama_init_from_model(model, params)
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
def feed(ids):
    array = (L.llama_token * len(ids))(*ids)  # must outlive the batch
    if L.llama_decode(context, L.llama_batch_get_one(array, len(ids))):
        raise SystemExit("llama_decode failed")
    return L.llama_get_logits_ith(context, -1)[0]
ids = [i % vocab for i in range(prompt + decode)]
start = time.perf_counter()
for low in range(0, prompt, 512):
    feed(ids[low : min(low + 512, prompt)])
prompt_s = time.perf_counter() - start
steps = []
for token in ids[prompt:]:
    start = time.perf_counter()
    feed([token])
    steps.append(time.perf_counter() - start)
warm = sorted(steps[len(steps) // 3 :])
print(json.dumps({
    "load_s": load_s,
    "prompt_tok_s": prompt / prompt_s if prompt else None,
    "decode_tok_s": len(warm) / sum(warm) if warm else None,
    "decode_p50_ms": warm[len(warm) // 2] * 1e3 if warm else None,
    "decode_p95_ms": warm[int(0.95 * len(warm))] * 1e3 if warm else None,
    "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
}))
"""

LLAMA_BENCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
tests = json.loads(done.stdout)
prompt_s = [test["avg_ts"] for test in tests if test["n_prompt"]]
decode_s = [test["avg_ts"] for test in tests if test["n_gen"]]
print(json.dumps({
    "prompt_tok_s": prompt_s[0] if prompt_s else None,
    "decode_tok_s": decode_s[0] if decode_s else None,
    "decode_p50_ms": 1e3 / decode_s[0] if decode_s else None,
    "max_rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
}))
"""


class CommandFailed(SystemExit):
    """Ends a script that does not expect it."""


def last_object(command: list[str]) -> dict[str, Any]:
    """Run a command and parse the JSON object that it prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def ours(model: str | Path, prompt: int, decode: int, threads: int, kernels: str = "auto") -> list[str]:
    """The command that measures edgerun once."""
    command = [sys.executable, "-m", "edgerun", "bench", str(model), "--json", "-r", "1", "--kernels", kernels]
    return [*command, "-p", str(prompt), "-n", str(decode), "-t", str(threads)]


def theirs(python: str, model: str | Path, prompt: int, decode: int, threads: int) -> list[str]:
    """The command that measures llama.cpp once, in an interpreter that has it."""
    return [python, "-c", LLAMA_CPP, str(model), str(prompt), str(decode), str(threads)]


def a_llama_bench(
    program: str, model: str | Path, prompt: int, decode: int, threads: int, options: Sequence[str]
) -> list[str]:
    """The command that measures what another build of llama-bench measures, once after its own warm-up."""
    sizes = ["-p", str(prompt), "-n", str(decode), "-t", str(threads), "-r", "1", "-o", "json"]
    return [sys.executable, "-c", LLAMA_BENCH, program, "-m", str(model), *sizes, *options]


def in_turn(commands: Mapping[str, list[str]], repetitions: int) -> dict[str, dict[str, float]]:
    """Name -> the medians of its figures; the commands take turns, since a machine's speed changes with time."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(repetitions):
        for name, command in commands.items():
            runs[name].append(last_object(command))
    return {
        name: {figure: statistics.median(run[figure] or 0.0 for run in done) for figure in FIGURES}
        for name, done in runs.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--llamacpp-python", help="interpreter with llama-cpp-python")
    peer.add_argument("--llama-bench", help="a llama-bench, of llama.cpp or of a relative")
    parser.add_argument("--options", default="", help="what llama-bench is given besides")
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--decode", type=int, default=48)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--kernels", default="auto", help="edgerun's, as at `edgerun bench`")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    sizes = (a.prompt, a.decode, a.threads)
    if a.llama_bench:
        peer_name = "llama-bench"
        peer_command = a_llama_bench(a.llama_bench, a.model, *sizes, shlex.split(a.options))
    else:
        peer_name = "llama.cpp"
        peer_command = theirs(a.llamacpp_python, a.model, *sizes)
    found = in_turn({peer_name: peer_command, "edgerun": ours(a.model, *sizes, a.kernels)}, a.repetitions)
    table = {figure: {name: found[name][figure] for name in ("edgerun", peer_name)} for figure in FIGURES}
    for row in table.values():
        row["ratio"] = row["edgerun"] / row[peer_name] if row[peer_name] else 0.0
    if a.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'':14s} {'edgerun':>10s} {peer_name:>11s} {'ratio':>7s}")
    for figure, row in table.items():
        print(f"{figure:14s} {row['edgerun']:10.2f} {row[peer_name]:11.2f} {row['ratio']:7.2f}")


if __name__ == "__main__":
    main()
