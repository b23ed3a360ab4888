"""Whether what is computed depends on who compiled which kernel, and in which order they are loaded.

    python -m tools.kernel_orders [--kernels avx2] [--orders 200] [--model-orders 20] [--fresh 2] [--seed N]

Kernels: each is compiled in a process of its own, into one cache; then all are loaded in random orders, and every
operation is compared with the numpy reference.

Models: ten tiny ones, of several families and types, answer in processes of their own that share one cache, in random
orders; the first `--fresh` orders begin with an empty one. Each answer (all logits) must be, bit for bit, the one that
the model gave in an empty cache of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgerun.formats.gguf import open_gguf
from edgerun.kernels.choice import choose
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.simd_kernels import SimdKernels
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.kernels import orders
from tests.models.instances import INSTANCES, tokens_of, write

ROOT = Path(__file__).resolve().parent.parent
MODELS = [
    *("llama-Q4_0", "llama-Q8_0", "llama-Q6_K", "llama-Q5_K", "llama-BF16"),
    *("qwen2-Q4_K", "gemma3-Q8_0", "phi3-Q6_K", "qwen3moe-small-Q4_0", "relu2-Q4_0"),
]


def main() -> int:
    """0 when nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--model-orders", type=int, default=20)
    parser.add_argument("--fresh", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--answer", nargs=2, metavar=("MODEL", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    isa = choose(options.kernels).name
    if options.answer:
        print(answer(Path(options.answer[0]), isa, Path(options.answer[1])))
        return 0
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(f"kernels {isa}, seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        wrong = of_kernels(isa, Path(folder), options.orders, seed) if options.orders else 0
        if options.model_orders:
            wrong += of_models(isa, Path(folder), options.model_orders, options.fresh, seed)
    return 1 if wrong else 0


def of_kernels(isa: str, folder: Path, count: int, seed: int) -> int:
    """How many orders were wrong."""
    began = time.perf_counter()
    orders.fill(isa, folder / "kernels", [[name] for name in SOURCES])
    print(f"{len(SOURCES)} kernels compiled, each in a process of its own: {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    wrong = orders.load(isa, folder / "kernels", seed, count, [])
    print(f"{count} orders of all kernels, {len(wrong)} wrong: {time.perf_counter() - began:.1f} s")
    for at, names in wrong:
        print(f"  seed {at}: {', '.join(names)}")
    return len(wrong)


def of_models(isa: str, folder: Path, count: int, fresh: int, seed: int) -> int:
    """How many answers were wrong."""
    began = time.perf_counter()
    paths = {name: write(INSTANCES[name], folder / f"{name}.gguf") for name in MODELS}
    with ThreadPoolExecutor() as workers:
        alone = dict(
            zip(MODELS, workers.map(lambda name: ask(paths[name], isa, folder / f"of-{name}"), MODELS), strict=True)
        )
    print(f"{len(MODELS)} models, each in an empty cache of its own: {time.perf_counter() - began:.0f} s")
    began, wrong = time.perf_counter(), 0
    shared = folder / "shared"
    for turn in range(count):
        if turn < fresh:
            shutil.rmtree(shared, ignore_errors=True)
        order = list(MODELS)
        random.Random(seed + turn).shuffle(order)
        for name in order:
            if ask(paths[name], isa, shared) != alone[name]:
                wrong += 1
                print(
                    f"  order {turn}: {name} answers otherwise, after {', '.join(order[: order.index(name)]) or 'none'}"
                )
    answers = count * len(MODELS)
    took = time.perf_counter() - began
    print(f"{count} orders of {len(MODELS)} models over one cache ({fresh} from an empty one): ", end="")
    print(f"{answers} answers, {wrong} wrong: {took:.0f} s")
    return wrong


def ask(path: Path, isa: str, cache: Path) -> str:
    """A model's answer from a process of its own; what went wrong when there is none."""
    command = [sys.executable, "-m", "tools.kernel_orders", "--kernels", isa, "--answer", str(path), str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-300:]}"


def answer(path: Path, isa: str, cache: Path) -> str:
    """A digest of the logits of all tokens, a prompt's and the ones decoded after it."""
    kernels = SimdKernels.load(isa, threads=2, events=lambda event: None, directory=cache)
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        ids = tokens_of(INSTANCES[path.stem])
        kept = decoder.new_cache(128)
        digest = hashlib.sha256(decoder.forward(ids[:-4], kept, logits="all").tobytes())
        for token in ids[-4:]:
            digest.update(decoder.forward([token], kept, logits="all").tobytes())
    kernels.close()
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
