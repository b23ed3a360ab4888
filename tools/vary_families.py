"""Vary the tiny instances of tests/models at random and hold edgerun to llama.cpp's logits, live.

    python tools/vary_families.py --cases 200 --seed 1 --llamacpp-python VENV/bin/python [--only ARCH ...] [--every]

Every case is an instance with other numbers: widths, heads, layers, experts, windows, types of weights (also several in
one file), metadata more and less, a longer text; where one of the engines does not run it, another is tried. edgerun
computes it as a whole and in every other way that it has (`varied_paths.py`; these must be equal byte for byte);
llama.cpp, in a process of its own, token by token. Prints a line for each case that differs, and which. The recorded
figures in tests/models/golden say what is known to hold; this looks for what nobody thought of.

Both engines round activations to 8 bits, and what one rounds up the other may round down. So where an answer with
quantised weights is more than 2e-2 from llama.cpp's (or 1e-2, F16 and BF16), all is computed once more with the same
weights written as F32: where both engines agree on that file, and edgerun's answer is about as far from it as
llama.cpp's, rounding is all there is (`near`). How far each is from that exact answer, and llama.cpp with keys in F16
from itself with keys in F32, stands in the table at the end. So does how far edgerun is from llama.cpp where edgerun's
kernels are llama.cpp's own operations (`ggml_kernels.py`): not at all, where nothing but rounding is the reason. With
F32 weights, where keys and values are rounded still, positions are left out at which a router found two experts all but
alike; if that does not explain it, another text decides: a fault shows in every one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.ggml_kernels import logits_by_ggml  # noqa: E402
from tools.ggml_library import Ggml, library_of  # noqa: E402
from tools.varied_instances import described, retyped, varied  # noqa: E402
from tools.varied_llama import Llama, Refused  # noqa: E402

_EXACT, _FLOAT, _QUANTISED = 1e-3, 1e-2, 2e-2  # relative errors that need no reason, by types
_ATTEMPTS = 8  # to find numbers that both engines run; the last leaves all but the type of weights as it is
_GELU = 5e-3  # llama.cpp's goes through a table of f16
_ALIKE = 1e-3  # scores of experts that rounding may turn over
_TURNED = 0.05  # the same, where weights are quantised
_COPIED = 1e-6  # where all is llama.cpp's but a few last bits
KV = (np.float32, np.float16)  # keys and values as llama.cpp has kept them
_MOST_WORSE = 2.0  # so many times as far as llama.cpp is edgerun where rounding is all there is


@dataclass(frozen=True)
class Outcome:
    """kind: equal, differ, near (rounding is why) or skipped; said: why. error: relative, to llama.cpp's logits with
    keys and values in F32 or F16, whichever is nearer; None: nothing was compared. exact: where that was too much with
    quantised weights."""

    kind: Literal["equal", "differ", "near", "skipped"]
    said: str = ""
    error: float | None = None
    exact: Distances | None = None


@dataclass(frozen=True)
class Distances:
    """Relative errors: edgerun's and llama.cpp's (with keys in F32) from the answer with the same weights as F32,
    llama.cpp's with keys in F16 from its own with keys in F32, and edgerun's by llama.cpp's operations from
    llama.cpp's, with keys alike."""

    edgerun: float
    llama: float
    of_itself: float
    by_ggml: float


def ours(path: Path, ids: list[int], seed: int, paths: bool = False) -> tuple[np.ndarray, list[str], np.ndarray]:
    """edgerun's logits (tokens, vocab) f32, which ways of computing them gave others, if they are tried, and (tokens,)
    by how much the last expert chosen was better than the first that was not, at the least."""
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_kernels
    from edgerun.models import Decoder, load_spec
    from edgerun.weights import ResidentStore
    from tools.varied_paths import ways_that_differ

    kernels = load_kernels("auto")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        store = ResidentStore(gguf, spec, kernels)
        decoder = Decoder(spec, store, kernels)
        gaps = np.full(len(ids), np.inf)
        with watched(kernels, gaps):
            whole = decoder.forward(ids, decoder.new_cache(256), logits="all")
        said = ways_that_differ(gguf, spec, store, kernels, ids, seed) if paths else []
    return whole, said, gaps


@contextmanager
def watched(kernels: Any, gaps: np.ndarray) -> Iterator[None]:
    """While it is open, gaps (tokens,) become those of each choice of experts and of their groups."""
    from edgerun.kernels import routing

    plain = kernels.route

    def route(logits: np.ndarray, how: routing.Routing, *rest: Any) -> None:
        bias = rest[2] if len(rest) > 2 else None
        if how.used < logits.shape[1] and len(logits) == len(gaps):
            every = replace(how, used=logits.shape[1], renormalise=False, scale=1.0, groups=1)
            ids, weights = routing.route(logits, every)  # all of them, best first
            scores = np.empty_like(weights)
            np.put_along_axis(scores, ids, weights, axis=1)
            biased = scores if bias is None else scores + bias
            choices = []
            if how.groups > 1:  # as good as their two best; of the others none is chosen
                best = np.sort(biased.reshape(len(biased), how.groups, -1), axis=2)[:, :, -2:].sum(axis=2)
                choices.append((best, how.groups_used))
                last = -np.sort(-best, axis=1)[:, how.groups_used - 1 : how.groups_used]
                biased = np.where(np.repeat(best >= last, biased.shape[1] // how.groups, axis=1), biased, -np.inf)
            choices.append((biased, how.used))
            for among, used in choices:
                ranked = -np.sort(-among, axis=1)
                if used < ranked.shape[1]:
                    np.minimum(gaps, ranked[:, used - 1] - ranked[:, used], out=gaps)
        plain(logits, how, *rest)

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
    return _FLOAT if i.type in (GgmlType.F16, GgmlType.BF16) else _QUANTISED


def compare(i: Any, path: Path, llama: Llama, ggml: Ggml, tokens: int, seed: int, paths: bool) -> Outcome:
    """Of an instance, computed by both, and with `paths` in all ways."""
    from edgerun.errors import EdgerunError
    from tests.models.instances import VOCAB, write

    try:
        write(i, path)
    except (EdgerunError, ValueError, KeyError) as error:  # numbers that do not go together
        return Outcome("skipped", f"cannot be written: {type(error).__name__}: {error}")
    ids = np.random.default_rng(seed).integers(0, VOCAB, tokens).tolist()
    refused = ""
    try:
        both = llama.logits(path, ids)
    except Refused as error:
        refused = str(error)
    try:
        whole, wrong, gaps = ours(path, ids, seed, paths)
    except EdgerunError as error:
        if refused:
            return Outcome("skipped", f"both refuse: {error}")
        return Outcome("differ", f"edgerun refuses: {type(error).__name__}: {error}")
    if wrong:
        return Outcome("differ", "; ".join(wrong))
    if refused:
        return Outcome("skipped", f"llama.cpp alone refuses: {refused}")
    errors = [far(whole, want) for want in both]
    want, error = both[int(np.argmin(errors))], min(errors)
    if error <= bound(i):
        return Outcome("equal", error=error)
    apart = Apart(i, path, ids, whole, want, gaps)
    copied = min(far(logits_by_ggml(ggml, path, ids, kv), want) for kv, want in zip(KV, both, strict=True))
    if i.type.name == "F32":
        near, said = of_floats(apart, llama, seed)
        return Outcome("near" if near else "differ", f"{said}; by ggml {copied:.1e}", error)
    near, said, exact = of_quantised(apart, llama, seed)
    exact = replace(exact, of_itself=far(both[1], both[0]), by_ggml=copied)
    near = near or (copied <= _COPIED and exact.edgerun <= _MOST_WORSE * exact.llama)
    return Outcome("near" if near else "differ", f"{said}; by ggml {copied:.1e}", error, exact)


@dataclass(frozen=True)
class Apart:
    """Two answers (tokens, vocab) f32 to one text that are too far apart: edgerun's and llama.cpp's."""

    instance: Any
    path: Path
    ids: list[int]
    mine: np.ndarray
    theirs: np.ndarray
    gaps: np.ndarray

    @property
    def worst(self) -> int:
        """The position at which they are farthest apart."""
        return int(self.by_row.argmax())

    @property
    def by_row(self) -> np.ndarray:
        """(tokens,) relative errors."""
        apart = np.linalg.norm(self.mine - self.theirs, axis=1)
        return np.asarray(apart / np.linalg.norm(self.theirs, axis=1))

    def __str__(self) -> str:
        rows = self.by_row
        shown = f"error {far(self.mine, self.theirs):.2e} (rows: median {np.median(rows):.1e}, "
        return f"{shown}worst {rows.max():.1e} at {self.worst}; gap there {self.gaps[self.worst]:.1e})"


def of_quantised(a: Apart, llama: Llama, seed: int) -> tuple[bool, str, Distances]:
    """Whether rounding is all there is, and why: by the same weights written as F32, and how far each is from that."""
    twin = replace(a.instance, exact=True)
    write_to = a.path.with_name("exact.gguf")
    from tests.models.instances import write

    write(twin, write_to)
    exact, _, gaps = ours(write_to, a.ids, seed)
    agree = min(far(exact, each) for each in llama.logits(write_to, a.ids))
    mine, other = far(a.mine, exact), far(a.theirs, exact)
    middle = [float(np.median(np.linalg.norm(each - exact, axis=1))) for each in (a.mine, a.theirs)]
    said = f"{a}; as F32 {agree:.1e}; from that edgerun {mine:.1e}, llama.cpp {other:.1e}, "
    said += f"medians {middle[0]:.2g} and {middle[1]:.2g}; gap there {gaps[a.worst]:.1e}"
    turned = gaps[a.worst] <= _TURNED and middle[0] <= _MOST_WORSE * middle[1]
    near = agree <= 2 * bound(twin) and (turned or mine <= _MOST_WORSE * other)
    return near, said, Distances(mine, other, 0.0, 0.0)


def of_floats(a: Apart, llama: Llama, seed: int) -> tuple[bool, str]:
    """The same, where only keys and values are rounded: without positions at which experts are all but alike, or by
    another text."""
    from tests.models.instances import VOCAB

    said = str(a)
    if not a.instance.experts:
        return False, said
    clear = a.gaps > _ALIKE
    if clear.any() and (rest := far(a.mine[clear], a.theirs[clear])) <= bound(a.instance):
        return True, f"{said}, without {len(a.ids) - clear.sum()} such positions {rest:.1e}"
    ids = np.random.default_rng(seed + 1).integers(0, VOCAB, len(a.ids)).tolist()
    again = ours(a.path, ids, seed)[0]
    other = min(far(again, each) for each in llama.logits(a.path, ids))
    return other <= bound(a.instance), f"{said}; another text {other:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=70)
    parser.add_argument("--llamacpp-python", required=True)
    parser.add_argument("--only", nargs="*", default=[], help="architectures, or names of instances")
    parser.add_argument(
        "--every", action="store_true", help="each architecture with F32 and with several types instead"
    )
    parser.add_argument("--logits-only", action="store_true", help="compute no case in other ways: quicker")
    a = parser.parse_args()
    from tests.models.instances import BY_LAYER, INSTANCES, SPARSE

    unknown = {each.name for each in (*SPARSE, *BY_LAYER)}
    bases = [i for i in INSTANCES.values() if i.name not in unknown and (not a.only or {i.arch, i.name} & set(a.only))]
    rng = np.random.default_rng(a.seed)
    outcomes: list[tuple[Any, Outcome]] = []
    cases = every(bases, rng) if a.every else searched(bases, rng, a.cases, a.seed)
    # An interrupt ends the search, and what was found until then is told all the same.
    ggml = Ggml(library_of(a.llamacpp_python))
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as directory, Llama(a.llamacpp_python) as llama:
        for case, tries in enumerate(cases):
            for i in tries:
                seed = int(rng.integers(1 << 30))
                outcome = compare(i, Path(directory) / "case.gguf", llama, ggml, a.tokens, seed, not a.logits_only)
                if outcome.kind != "skipped":
                    break
            outcomes.append((i, outcome))
            if outcome.said:
                base = INSTANCES[i.name.partition("~")[0]]
                print(f"{case} {base.name} {described(i, base)}: {outcome.kind}: {outcome.said}", flush=True)
    print(f"{len(outcomes)} cases: {Counter(outcome.kind for _, outcome in outcomes)}")
    for kind in sorted({kind_of(i) for i, _ in outcomes}):
        errors = [each.error for i, each in outcomes if kind_of(i) == kind and each.error is not None]
        if errors:
            print(f"{kind}: {len(errors)} compared, median {np.median(errors):.1e}, worst {max(errors):.1e}")
    missing = {i.arch for i, _ in outcomes} - {i.arch for i, each in outcomes if each.error is not None}
    if missing:
        print(f"architectures of which no case was compared: {', '.join(sorted(missing))}")
    tell_of_exact(outcomes)


Tries = Iterator[Any]  # instances made of those of tests/models, until both engines run one


def searched(bases: list[Any], rng: np.random.Generator, cases: int, seed: int) -> Iterator[Tries]:
    """One base after the other, with other numbers; at last with nothing but other types of weights."""
    for case in range(cases):
        base = bases[(case + seed) % len(bases)]
        yield (varied(base, rng) if left else retyped(base, rng) for left in reversed(range(_ATTEMPTS)))


def every(bases: list[Any], rng: np.random.Generator) -> Iterator[Tries]:
    """Each architecture as it is with F32 weights, then with several types of weights."""
    from edgerun.formats.gguf import GgmlType

    for arch in sorted({base.arch for base in bases}):
        mine = [base for base in bases if base.arch == arch]
        yield (replace(base, type=GgmlType.F32, mixed=()) for base in mine)
        yield (retyped(base, rng) for base in mine)


def tell_of_exact(outcomes: list[tuple[Any, Outcome]]) -> None:
    """The table of those with quantised weights that were too far apart, farthest first."""
    found = [(i, each, each.exact) for i, each in outcomes if each.error is not None and each.exact is not None]
    if not found:
        return
    columns = ("edgerun to llama.cpp", "edgerun to exact", "llama.cpp to exact", "F16 keys", "by ggml")
    print(f"| architecture | layers | type | {' | '.join(columns)} |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for i, each, to in sorted(found, key=lambda each: -(each[1].error or 0)):
        type = "/".join(type.name for type in i.mixed) or i.type.name
        line = f"| {i.arch} | {i.layers} | {type} | {each.error:.1e} | {to.edgerun:.1e} | {to.llama:.1e} "
        print(f"{line}| {to.of_itself:.1e} | {to.by_ggml:.1e} |")
    nearer = sum(to.edgerun < to.llama for _, _, to in found)
    ratio = np.median([to.edgerun / to.llama for _, _, to in found])
    print(
        f"edgerun is nearer to exact in {nearer} of {len(found)}; median of its distance over llama.cpp's {ratio:.2f}"
    )


def kind_of(i: Any) -> str:
    """Of weights, as errors are bounded."""
    if i.type.name == "F32":
        return "F32"
    return "mixed" if i.mixed else "floats" if i.type.name in ("F16", "BF16") else "quantised"


if __name__ == "__main__":
    main()
