"""What other ways to write keys and values down would cost in perplexity, before a kernel is written for any.

    python benchmarks/kv_codes.py MODEL.gguf TEXT.txt [--windows 6] [--keys CODE ...] [--values CODE ...]

Every row's keys and values are rounded as a code says and then kept in f16. A code is `token` or `channel`, bits, and
letters: `token4` shares a scale among 32 dimensions of a position (as q8_0 and q4_0 do), `channel4` has a scale and a
least number for each dimension over 64 positions (KIVI, Liu et al. 2024); `r`: rotated before (a Hadamard matrix over
the head), `m`: a scale and a least number for `token` too, shared by 64 dimensions; `f`: the first 4 positions are left
as they are. `noise10` makes every number up to 2^-10 of it greater or smaller, as chance has it: what is no worse than
that is within what the model does with any other rounding. Windows of 512 tokens, the second half scored; ratios to f16
with the standard error of the paired differences.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from paired import nats, told
from perplexity import GOLDEN, READ, windows_of

from edgerun import LLM
from edgerun.kernels.attention_layout import KEYS
from edgerun.kernels.kv_formats import GROUP
from edgerun.kernels.page_arrays import rotated
from edgerun.kernels.simd_kernels import SimdKernels

F32 = NDArray[np.float32]
EXACT_FIRST = 4


def rounded(x: F32, start: int, code: str) -> F32:
    """x (rows, heads, dim) f32, of positions `start` and on, as they come back from `code`."""
    if code == "f16":
        return x
    if code.startswith("noise"):
        rng = np.random.default_rng(start)
        return (x * (1 + rng.uniform(-1, 1, x.shape) * 2.0 ** -int(code[5:]))).astype(np.float32)
    match = re.fullmatch(r"(token|channel)(\d)([rmf]*)", code)
    if match is None:
        raise SystemExit(f"unknown code {code}")
    kind, bits, letters = match[1], int(match[2]), match[3]
    y = rotated(x) if "r" in letters else x
    if kind == "token":
        width = 2 * GROUP if "m" in letters else GROUP
        groups = y.reshape(*y.shape[:2], -1, min(width, y.shape[2]))
        back = (_between if "m" in letters else _signed)(groups, bits, axis=3).reshape(y.shape)
    else:
        back = np.concatenate([_between(y[low : low + KEYS], bits, axis=0) for low in range(0, len(y), KEYS)])
    back = rotated(back) if "r" in letters else back
    if "f" in letters and start < EXACT_FIRST:
        back[: EXACT_FIRST - start] = x[: EXACT_FIRST - start]
    return np.ascontiguousarray(back, dtype=np.float32)


def _signed(x: F32, bits: int, axis: int) -> F32:
    """Codes from -2^(bits - 1) on, of which the first is the number farthest from 0."""
    place = np.expand_dims(np.abs(x).argmax(axis=axis), axis)
    scale = (np.take_along_axis(x, place, axis) / np.float32(-(1 << bits - 1))).astype(np.float16).astype(np.float32)
    codes = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale != 0))
    return np.clip(codes, -(1 << bits - 1), (1 << bits - 1) - 1) * scale


def _between(x: F32, bits: int, axis: int) -> F32:
    """Codes from the least number to the greatest."""
    least = x.min(axis=axis, keepdims=True).astype(np.float16).astype(np.float32)
    scale = ((x.max(axis=axis, keepdims=True) - least) / ((1 << bits) - 1)).astype(np.float16).astype(np.float32)
    codes = np.rint(np.divide(x - least, scale, out=np.zeros_like(x), where=scale != 0))
    return np.clip(codes, 0, (1 << bits) - 1) * scale + least


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--keys", nargs="+", default=["f16"])
    parser.add_argument("--values", nargs="+", default=["f16"], help="as many as --keys, or one for all")
    a = parser.parse_args()
    windows = windows_of(a.model, a.text)
    some = [windows[i] for i in sorted(range(len(windows)), key=lambda i: i * GOLDEN % 1)[: a.windows]]
    values = a.values * len(a.keys) if len(a.values) == 1 else a.values
    write = SimdKernels.kv_write
    with LLM(a.model, context=1024, threads=2) as llm:
        plain = np.zeros((0, 0))
        for keys_code, values_code in [("f16", "f16"), *zip(a.keys, values, strict=True)]:

            def kv_write(
                self: Any, spans: Any, k: F32, v: F32, codes: tuple[str, str] = (keys_code, values_code)
            ) -> None:
                k[...], v[...] = (rounded(x, spans[0].start, code) for x, code in zip((k, v), codes, strict=True))
                write(self, spans, k, v)

            with patch.object(SimdKernels, "kv_write", kv_write):
                found = np.array([nats(llm, ids, READ) for ids in some])
            plain = plain if len(plain) else found
            print(f"keys {keys_code:10s} values {values_code:10s} {told(found, plain)}", flush=True)


if __name__ == "__main__":
    main()
