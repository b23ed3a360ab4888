"""Damage small model files in every way and see that edgerun answers, or refuses with an error of its own.

    python tools/fuzz.py --cases 20000 --jobs 2
    python tools/fuzz.py --case 1234 --keep /tmp/case

A case is a seed: the good file (every family; GGUF, safetensors, llama2.c, tokenizer.json, chat templates), the damage
and what is done with the file follow from it. Cases run in processes with 2 GB of address space and 25 s for each. What
loads runs a prompt and two tokens, resident and streamed, which must agree; files whose meaning was not changed must
answer as before. Prints what came of all cases by kind, and every case that must not be: exit status 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgerun.formats.gguf import GgmlType  # noqa: E402
from edgerun.kernels import load_kernels  # noqa: E402
from edgerun.kernels.interface import NEURON_TYPES  # noqa: E402
from tools.fuzzing.case import Bench, Outcome  # noqa: E402
from tools.fuzzing.corpus import KINDS, make_corpus  # noqa: E402
from tools.fuzzing.workers import run_cases  # noqa: E402


def make_bench(folder: Path, kernels: str = "auto") -> Bench:
    """The corpus in `folder`, and kernels with one thread, all compiled, so that processes can be forked off."""
    made = load_kernels(kernels, threads=1)
    made.prepare(list(GgmlType))
    made.prepare_neurons(NEURON_TYPES)
    bench = Bench(make_corpus(folder), made)
    bench.warm_up()
    return bench


def table(outcomes: dict[int, Outcome]) -> str:
    """Counts by kind and outcome."""
    counts = Counter((each.kind, each.word) for each in outcomes.values())
    return "\n".join(f"{count:7}  {kind:12} {word}" for (kind, word), count in sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of files, with commas (default: {','.join(KINDS)})")
    parser.add_argument("--case", type=int, help="this one only, here, with its error")
    parser.add_argument("--keep", type=Path, help="with --case: a folder for its files")
    a = parser.parse_args()
    kinds = [kind for kind in KINDS if kind in a.kinds.split(",")]
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of weights that are no numbers
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        bench = make_bench(Path(folder))
        if a.case is not None:
            if a.keep is not None:
                a.keep.mkdir(parents=True)
            print(bench.run(a.case, kinds, a.keep))
            return 0
        return watch(bench, a.start, a.cases, kinds, a.jobs)


def watch(bench: Bench, start: int, cases: int, kinds: list[str], jobs: int) -> int:
    """Run them all, printing what must not be at once and counts now and then."""
    outcomes: dict[int, Outcome] = {}
    began = shown = time.monotonic()
    for seed, outcome in run_cases(bench, range(start, start + cases), kinds, jobs=jobs):
        outcomes[seed] = outcome
        if not outcome.good:
            print(f"--case {seed}: {outcome.kind}: {outcome.word}: {outcome.detail}", flush=True)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"... {len(outcomes)} of {cases}, {shown - began:.0f} s", flush=True)
    bad = sum(not each.good for each in outcomes.values())
    print(table(outcomes))
    seconds = time.monotonic() - began
    print(f"{len(outcomes)} cases, seeds {start} to {start + cases - 1}, {bad} that must not be, in {seconds:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
