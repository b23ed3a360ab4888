"""Vary the tiny instances of tests/models at random and hold groups of devices to one device alone, and to each other.

    python tools/vary_groups.py --cases 100 --seed 1 [--only ARCH ...]

Every case is an instance with other numbers (`varied_instances.py`) on groups of two to five ranks, each a thread of
this process, with random parts, by the star or the mesh: a prompt and single tokens after it. Where sums are made of
units, all groups, a group of one among them, must give the same bits; in other groups logits must be near those of the
decoder alone. Prints a line for each case that is refused (and why), differs or fails, and how many were right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.varied_instances import described, varied  # noqa: E402

_NEAR = 5e-2  # of the largest logit, where activations are rounded: a choice of experts may turn over, so in the middle
_EXACT = 1e-3
_NEW = 4  # single tokens


def logits_of(decoder: Any, ids: list[int]) -> np.ndarray:
    """(len(ids), vocab): all but the last few of them as a prompt, then these one by one."""
    cache, split = decoder.new_cache(256), len(ids) - _NEW
    rows = [decoder.forward(ids[:split], cache, logits="all").copy()]
    rows += [decoder.forward([token], cache).copy() for token in ids[split:]]
    return np.concatenate(rows)


def compare(path: Path, ids: list[int], rng: np.random.Generator) -> str:
    """What is wrong with groups that compute this file; "" where nothing is. UnsupportedError for what is refused."""
    from edgerun.cluster.shares import with_states
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_kernels
    from edgerun.models import Decoder, load_spec
    from edgerun.weights import ResidentStore
    from tests.cluster.groups import linked_group
    from tests.cluster.in_threads import one_thread, resident, together

    wrong = []
    with open_gguf(path) as gguf:
        spec, kernels = load_spec(gguf), load_kernels("auto", threads=1)
        alone = logits_of(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), ids)
        most = _EXACT if all(info.type.name == "F32" for info in spec.tensors.values()) else _NEAR
        wanted = None
        for in_units in (True, False):
            tried = [[1.0]] if in_units else []
            tried += [rng.choice([1, 1, 1, 2, 4, 0.3], int(rng.integers(2, 6))).tolist() for _ in range(2)]
            for parts in (with_states(spec, each) for each in tried):
                way = str(rng.choice(["star", "mesh"]))
                said = f"{[round(part, 2) for part in parts]} {way}{' in units' if in_units else ''}"
                group = linked_group(len(parts), way, wait_s=60)
                with together(gguf, spec, parts, path.parent, resident(one_thread), group, in_units=in_units) as made:
                    got = logits_of(made.decoder, ids)
                if made.errors:
                    wrong.append(f"{said}: {made.errors}")
                if in_units:
                    wanted = got if wanted is None else wanted
                    if not np.array_equal(got, wanted):
                        wrong.append(f"{said}: other bits than a group of one")
                off = np.abs(got - alone).max(axis=1) / np.abs(alone).max()
                if not np.median(off) < most:
                    wrong.append(f"{said}: {np.median(off):.1e} in the middle, {off.max():.1e} at most from one alone")
    return "; ".join(wrong)


def main() -> None:
    """The command line's."""
    from edgerun.errors import EdgerunError, FormatError, UnsupportedError
    from tests.models.instances import INSTANCES, write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="architectures, or names of instances")
    args = parser.parse_args()
    rng, counts = np.random.default_rng(args.seed), Counter[str]()
    bases = [each for each in INSTANCES.values() if not args.only or each.arch in args.only or each.name in args.only]
    for case in range(args.cases):
        base = bases[int(rng.integers(len(bases)))]
        with tempfile.TemporaryDirectory() as folder:
            try:
                instance = varied(base, rng)
                path = write(instance, Path(folder) / "model.gguf")
            except (EdgerunError, ValueError, KeyError, ZeroDivisionError):
                counts["no model"] += 1
                continue
            ids = rng.integers(0, 96, int(rng.integers(6, 80))).tolist()
            try:
                said = compare(path, ids, rng)
                kind = "differs" if said else "right"
            except (UnsupportedError, FormatError) as error:
                kind, said = "refused", str(error)
            except Exception:  # noqa: BLE001 - it is told, and the next case is tried
                kind, said = "failed", traceback.format_exc()
        counts[kind] += 1
        if kind != "right":
            print(f"{case} {base.name} {described(instance, base)}: {kind}: {said}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
