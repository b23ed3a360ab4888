"""Vary the tiny instances of tests/models at random and hold edgerun to llama.cpp's logits, live.

    python tools/vary_families.py --cases 200 --seed 1 --llamacpp-python VENV/bin/python [--only ARCH ...]

Every case is an instance with other numbers: widths, heads, layers, experts, windows, types of weights, options of its
metadata, a longer text. edgerun computes it as a whole, in chunks and token by token (these must be equal byte for
byte); llama.cpp, in processes of its own, token by token. Prints a line for each case that differs, and which.
The recorded figures in tests/models/golden say what is known to hold; this looks for what nobody thought of.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("F32", "F32", "F16", "Q8_0", "Q4_0", "Q4_K")
OPTIONS: dict[str, Any] = {  # of metadata: what any family's file may say
    "rope.freq_base": 50000.0,
    "attention.layer_norm_rms_epsilon": 1e-3,
    "attention.layer_norm_epsilon": 1e-3,
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    "yarn": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    },
    "factor": {"rope.scaling.attn_factor": 1.3},
    "logit_scale": 0.5,
    "final_logit_softcapping": 20.0,
    "attention.scale": 0.3,
    "embedding_scale": 3.0,
    "residual_scale": 0.5,
    "expert_weights_scale": 1.5,
    "expert_weights_norm": True,
    "rope.dimension_count": 8,
    "attention.temperature_scale": 0.2,
}
_LOOSE = {"Q4_0": 0.06, "Q4_1": 0.06, "Q4_K": 0.06, "MXFP4": 0.06, "IQ4_NL": 0.06}
_ORACLE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import json, numpy as np
from tools.record_golden import logits_of
path = Path(sys.argv[1])
ids = json.loads(path.with_suffix(".json").read_text())
np.save(path.with_suffix(".npy"), np.stack([logits_of(path, ids), logits_of(path, ids, 1)]))
"""


def varied(base: Any, rng: np.random.Generator) -> Any:
    """`base` with other numbers. Raises ValueError where they do not go together."""
    from edgerun.formats.gguf import GgmlType

    changes: dict[str, Any] = {"name": f"{base.name}~{rng.integers(1 << 30)}"}
    if rng.random() < 0.7:
        changes["type"] = GgmlType[str(rng.choice(TYPES))]
    if rng.random() < 0.5:
        changes["d"] = int(rng.choice([64, 128, 256]))
    if rng.random() < 0.5 and "ff" not in base.by_layer:
        changes["ff"] = int(rng.choice([32, 64, 96, 160, 256]))
    if rng.random() < 0.5 and not {"heads", "kv_heads"} & set(base.by_layer) and base.heads % 4 == 0:
        changes["heads"] = int(rng.choice([2, 4, 6, 8]))
        changes["kv_heads"] = int(rng.choice([n for n in (1, 2, 3, 4, 6, 8) if changes["heads"] % n == 0]))
    if rng.random() < 0.4 and base.window:
        changes["window"] = int(rng.integers(2, 60))
    if rng.random() < 0.5 and base.experts:
        changes["experts"] = int(rng.choice([4, 8, 12, 16]))
        changes["used"] = int(rng.integers(1, 1 + min(6, changes["experts"])))
    if rng.random() < 0.3 and base.ff_expert:
        changes["ff_expert"] = int(rng.choice([32, 64, 96, 128]))
    if rng.random() < 0.3 and base.ff_shared:
        changes["ff_shared"] = int(rng.choice([32, 64, 96]))
    if rng.random() < 0.15:
        changes["tied"] = not base.tied
    said = dict(base.metadata)
    if said and rng.random() < 0.5:  # a key that many files lack
        del said[str(rng.choice(list(said)))]
    for key, value in OPTIONS.items():
        if rng.random() < 0.12:
            said |= {key: value} if not isinstance(value, dict) else value
    changes["metadata"] = said
    i = replace(base, **changes)
    widths = [i.d, i.ff, i.heads * i.head_dim, i.ff_expert or i.ff, i.ff_shared or i.ff]
    if any(width % i.type.block_size for width in widths):
        i = replace(i, type=GgmlType.F32)
    return i


def compare(i: Any, directory: Path, llama: str, tokens: int, seed: int) -> str:
    """What is wrong with an instance, or an empty text."""
    from edgerun.errors import EdgerunError
    from edgerun.formats.gguf import GgmlType, open_gguf
    from edgerun.kernels import load_kernels
    from edgerun.models import Decoder, load_spec
    from edgerun.weights import ResidentStore
    from tests.models.instances import VOCAB, write

    path = directory / "case.gguf"
    try:
        write(i, path)
    except (EdgerunError, ValueError, KeyError) as error:  # numbers that do not go together
        return f"- cannot be written: {type(error).__name__}: {error}"
    ids = np.random.default_rng(seed).integers(0, VOCAB, tokens).tolist()
    path.with_suffix(".json").write_text(json.dumps(ids))
    result = subprocess.run(
        [llama, "-c", _ORACLE.format(root=str(ROOT)), str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if result.returncode:
        return f"- llama.cpp refuses: {result.stderr.strip().splitlines()[-1:] or result.returncode}"
    both = np.load(path.with_suffix(".npy"))  # (2, tokens, vocab) f32: with exact keys and values, and with ours, f16
    kernels = load_kernels("auto")
    try:
        with open_gguf(path) as gguf:
            spec = load_spec(gguf)
            decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
            whole = decoder.forward(ids, decoder.new_cache(256), logits="all")
            cache = decoder.new_cache(256)
            cuts = sorted(np.random.default_rng(seed).choice(np.arange(1, tokens), 3, replace=False).tolist())
            pieces = [
                decoder.forward(ids[a:b], cache, logits="all") for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)
            ]
            cache = decoder.new_cache(256)
            single = [decoder.forward([t], cache, logits="all") for t in ids]
    except EdgerunError as error:
        return f"edgerun refuses: {type(error).__name__}: {error}"
    said = []
    errors = [float(np.linalg.norm(whole - want) / np.linalg.norm(want)) for want in both]
    error, want = min(errors), both[int(np.argmin(errors))]
    floats = i.type in (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
    if not error <= (5e-3 if i.type == GgmlType.F32 else 1e-2 if floats else _LOOSE.get(i.type.name, 0.03)):
        rows = np.linalg.norm(whole - want, axis=1) / np.linalg.norm(want, axis=1)
        said.append(
            f"error {error:.2e} (rows: median {np.median(rows):.1e}, worst {rows.max():.1e} at {rows.argmax()})"
        )
    if not np.array_equal(np.concatenate(pieces), whole):
        said.append(f"chunks {cuts} differ")
    if not np.array_equal(np.concatenate(single), whole):
        said.append("token by token differs")
    return "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=70)
    parser.add_argument("--llamacpp-python", required=True)
    parser.add_argument("--only", nargs="*", default=[], help="architectures, or names of instances")
    a = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.models.instances import BY_LAYER, INSTANCES, SPARSE

    unknown = {each.name for each in (*SPARSE, *BY_LAYER)}
    bases = [i for i in INSTANCES.values() if i.name not in unknown and (not a.only or {i.arch, i.name} & set(a.only))]
    rng = np.random.default_rng(a.seed)
    counts = {"equal": 0, "differ": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as directory:
        for case in range(a.cases):
            base = bases[int(rng.integers(len(bases)))]
            i = varied(base, rng)
            said = compare(i, Path(directory), a.llamacpp_python, a.tokens, int(rng.integers(1 << 30)))
            kind = "skipped" if said.startswith("- ") else "differ" if said else "equal"
            counts[kind] += 1
            if said:
                changed = {
                    key: getattr(value, "name", value)
                    for key, value in vars(i).items()
                    if key not in ("name", "metadata") and value is not getattr(base, key)
                }
                gone = set(base.metadata) - set(i.metadata)
                more = {key: value for key, value in i.metadata.items() if base.metadata.get(key) is not value}
                changed |= {"without": gone} if gone else {}
                changed |= {"says": more} if more else {}
                print(f"{case} {base.name} {changed}: {said}", flush=True)
    print(f"{a.cases} cases: {counts}")


if __name__ == "__main__":
    main()
