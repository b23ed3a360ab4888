"""Vary the tiny instances of tests/models at random and hold edgerun to llama.cpp's logits, live.

    python tools/vary_families.py --cases 200 --seed 1 --llamacpp-python VENV/bin/python [--only ARCH ...]

Every case is an instance with other numbers: widths, heads, layers, experts, windows, types of weights (also several in
one file), metadata more and less, a longer text. edgerun computes it as a whole, in chunks and token by token (these
must be equal byte for byte); llama.cpp, in processes of its own, token by token. Prints a line for each case that
differs, and which. The recorded figures in tests/models/golden say what is known to hold; this looks for what nobody
thought of.

Rounding may turn an expert's choice over, and then all that follows differs by much. So a case of quantised weights
that is too far off is computed once more with the same weights written as F32: where both engines agree on that file,
and edgerun's answer on the quantised one is about as far from it as llama.cpp's, rounding is all there is (`near`).
With F32 weights, where keys and values are rounded still, positions are left out at which a router found two experts
all but alike; if that does not explain it, another text decides: a fault shows in every one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_LOOSE = {"Q4_0": 0.06, "Q4_1": 0.06, "Q4_K": 0.06, "MXFP4": 0.06, "IQ4_NL": 0.06}
_EXACT, _FLOAT, _MIXED, _USUAL = 5e-3, 1e-2, 0.06, 0.03  # relative errors that are no fault, by types
_GELU = 1.5e-2  # llama.cpp's goes through a table of f16
_ALIKE = 1e-3  # scores of experts that rounding may turn over
_MOST_WORSE = 2.0  # so many times as far as llama.cpp is edgerun where rounding is all there is
_ORACLE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import json, numpy as np
from tools.record_golden import logits_of
path = Path(sys.argv[1])
ids = json.loads(path.with_suffix(".json").read_text())
np.save(path.with_suffix(".npy"), np.stack([logits_of(path, ids), logits_of(path, ids, 1)]))
"""


class Refused(Exception):
    """llama.cpp does not run the file."""


def llamas(path: Path, ids: list[int], llama: str) -> np.ndarray:
    """llama.cpp's logits (2, tokens, vocab) f32: with keys and values in F32 and, as ours, in F16."""
    path.with_suffix(".json").write_text(json.dumps(ids))
    command = [llama, "-c", _ORACLE.format(root=str(ROOT)), str(path)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    if result.returncode:
        raise Refused(str(result.stderr.strip().splitlines()[-1:] or result.returncode))
    return np.load(path.with_suffix(".npy"))


def ours(path: Path, ids: list[int], seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """edgerun's logits (tokens, vocab) f32, which ways of computing them gave others, and (tokens,) by how much
    the last expert chosen was better than the first that was not, at the least."""
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_kernels
    from edgerun.models import Decoder, load_spec
    from edgerun.weights import ResidentStore

    kernels = load_kernels("auto")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        gaps = np.full(len(ids), np.inf)
        with watched(kernels, gaps):
            whole = decoder.forward(ids, decoder.new_cache(256), logits="all")
        cuts = np.random.default_rng(seed).choice(np.arange(1, len(ids)), 3, replace=False)
        cuts = sorted(cuts.tolist())
        stretches = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
        said = []
        for what, parts in ((f"in chunks {cuts}", stretches), ("token by token", [[token] for token in ids])):
            cache = decoder.new_cache(256)
            found = np.concatenate([decoder.forward(part, cache, logits="all") for part in parts])
            if not np.array_equal(found, whole):
                said.append(f"{what} it differs")
    return whole, said, gaps


@contextmanager
def watched(kernels: Any, gaps: np.ndarray) -> Iterator[None]:
    """While it is open, gaps (tokens,) become those of each choice of experts."""
    from edgerun.kernels.routing import choosing, scores_of

    plain = kernels.route

    def route(logits: np.ndarray, routing: Any, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        ranked = -np.sort(-choosing(scores_of(logits, routing.kind), bias), axis=1)
        if routing.used < ranked.shape[1] and len(ranked) == len(gaps):
            np.minimum(gaps, ranked[:, routing.used - 1] - ranked[:, routing.used], out=gaps)
        return plain(logits, routing, bias)  # type: ignore[no-any-return]

    kernels.route = route
    try:
        yield
    finally:
        del kernels.route


def far(got: np.ndarray, want: np.ndarray) -> float:
    """Relative error."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def bound(i: Any) -> float:
    """What error is no fault."""
    from edgerun.formats.gguf import GgmlType
    from edgerun.models import FAMILIES

    gelu = FAMILIES[i.arch].activation == "gelu"
    if i.exact or i.type == GgmlType.F32:
        return _GELU if gelu else _EXACT
    if i.mixed:
        return _MIXED
    floats = i.type in (GgmlType.F16, GgmlType.BF16)
    return (_GELU if gelu else _FLOAT) if floats else _LOOSE.get(i.type.name, _USUAL)


def compare(i: Any, path: Path, llama: str, tokens: int, seed: int) -> str:
    """What is wrong with an instance, or an empty text; `- `: nothing to compare; `~ `: rounding."""
    from edgerun.errors import EdgerunError
    from edgerun.formats.gguf import GgmlType
    from tests.models.instances import VOCAB, write

    try:
        write(i, path)
    except (EdgerunError, ValueError, KeyError) as error:  # numbers that do not go together
        return f"- cannot be written: {type(error).__name__}: {error}"
    ids = np.random.default_rng(seed).integers(0, VOCAB, tokens).tolist()
    refused = ""
    try:
        both = llamas(path, ids, llama)
    except Refused as error:
        refused = str(error)
    try:
        whole, said, gaps = ours(path, ids, seed)
    except EdgerunError as error:
        return f"- both refuse: {error}" if refused else f"edgerun refuses: {type(error).__name__}: {error}"
    if refused:
        return f"- llama.cpp alone refuses: {refused}"
    errors = [far(whole, want) for want in both]
    want = both[int(np.argmin(errors))]
    if min(errors) > bound(i):
        rows = np.linalg.norm(whole - want, axis=1) / np.linalg.norm(want, axis=1)
        shown = (
            f"error {min(errors):.2e} (rows: median {np.median(rows):.1e}, worst {rows.max():.1e} at {rows.argmax()})"
        )
        if i.type != GgmlType.F32 and not said:
            twin = replace(i, exact=True)
            write(twin, path)
            exact, theirs = ours(path, ids, seed)[0], llamas(path, ids, llama)
            agree = min(far(exact, each) for each in theirs)
            mine, other = far(whole, exact), min(far(want, each) for each in theirs)
            shown += f"; as F32 {agree:.1e}; from that edgerun {mine:.1e}, llama.cpp {other:.1e}"
            if agree <= bound(twin) and mine <= _MOST_WORSE * other:
                return f"~ near: {shown}"
        elif i.experts and not said:
            clear = gaps > _ALIKE
            shown += f"; gap there {gaps[rows.argmax()]:.1e}"
            if clear.any() and (rest := far(whole[clear], want[clear])) <= bound(i):
                return f"~ near: {shown}, without {len(ids) - clear.sum()} such positions {rest:.1e}"
            ids = np.random.default_rng(seed + 1).integers(0, VOCAB, tokens).tolist()
            again = ours(path, ids, seed)[0]
            shown += f"; another text {(other := min(far(again, each) for each in llamas(path, ids, llama))):.1e}"
            if other <= bound(i):
                return f"~ near: {shown}"
        said.append(shown)
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
    from tools.varied_instances import described, varied

    unknown = {each.name for each in (*SPARSE, *BY_LAYER)}
    bases = [i for i in INSTANCES.values() if i.name not in unknown and (not a.only or {i.arch, i.name} & set(a.only))]
    rng = np.random.default_rng(a.seed)
    counts = {"equal": 0, "differ": 0, "near": 0, "skipped": 0}
    with tempfile.TemporaryDirectory() as directory:
        for case in range(a.cases):
            base = bases[(case + a.seed) % len(bases)]
            i = varied(base, rng)
            said = compare(i, Path(directory) / "case.gguf", a.llamacpp_python, a.tokens, int(rng.integers(1 << 30)))
            kind = {"- ": "skipped", "~ ": "near"}.get(said[:2], "differ") if said else "equal"
            counts[kind] += 1
            if said:
                print(f"{case} {base.name} {described(i, base)}: {said}", flush=True)
    print(f"{a.cases} cases: {counts}")


if __name__ == "__main__":
    main()
