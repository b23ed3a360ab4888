"""Random caps and contexts on some models: each run stays within its cap, is refused cleanly, or this exits with 1.

python benchmarks/random_caps.py MODEL.gguf ... [--runs 50] [--seed 0]     (needs root and control groups)
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from capped import run_capped

MIB = 1 << 20


def main() -> None:
    """Run them and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    rng = random.Random(a.seed)
    bad = refused = 0
    for number in range(a.runs):
        model = rng.choice(a.models)
        cap = int(rng.uniform(0.15, 1.3) * (model.stat().st_size + 150 * MIB)) // MIB * MIB
        context, prompt = rng.choice([64, 128, 256]), rng.choice([1, 30, 60])
        command = [sys.executable, "-m", "edgerun", "bench", str(model), "-r", "1", "--json"]
        command += ["-p", str(prompt), "-n", "4", "-c", str(context)]
        done = run_capped(command, cap)
        fine = done.code in (0, 4) and done.peak_bytes <= cap
        refused += done.code == 4
        bad += not fine
        said = done.stderr.strip().splitlines()[-1] if done.code else ""
        print(f"{number:3d} {model.name:24s} cap {cap // MIB:6d} MiB  context {context:5d}  exit {done.code}  "
              f"peak {done.peak_bytes // MIB:6d} MiB  {'' if fine else 'BAD '}{said[:100]}", flush=True)  # fmt: skip
    print(f"{a.runs} runs, {refused} refused, {bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
