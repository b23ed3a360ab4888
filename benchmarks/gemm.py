"""Products of packed weights, by format, shape and number of tokens, against what this processor's units can do.

python benchmarks/gemm.py [--formats Q8_0,Q4_0] [--shapes 2048x2048] [--tokens 1,256] [--threads 2] [--json]

The peak is measured in the same run: a loop of nothing but products of signed 8-bit codes with activations, summed as
the instruction set does it, one of 4-bit codes, and one of fused multiply-adds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import int64, types

from edgerun.device.cpu import default_threads
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import quantize
from edgerun.kernels import load_kernels
from edgerun.kernels.codegen import object_code
from edgerun.kernels.engine import new_engine
from edgerun.kernels.isa import Isa, find
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import emitter_of
from edgerun.kernels.simd import I32, I64, function, load_i64
from edgerun.weights.arena import Arena

FORMATS = "Q8_0,Q4_0,Q4_1,Q5_0,IQ4_NL,Q4_K,Q5_K,Q6_K,F16"
STEPS, EACH = 1024, 8  # of an item of a peak loop; products of each of its eight independent sums in a step
EIGHT_BIT, FOUR_BIT, FLOAT = "8-bit", "4-bit", "float"
BOUND = {"Q8_0": EIGHT_BIT, "F32": FLOAT, "F16": FLOAT, "BF16": FLOAT}  # others: FOUR_BIT


def build_peak(isa: Isa, kind: str) -> Any:
    """Slots: 0 operands (8 KiB), 1 where a result goes. An item is STEPS times eight sums of EACH products."""

    def emit(b: Any, operands: Any, out: Any) -> None:
        e = emitter_of(isa, b, rows=4)
        before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        w = e.load_floats(operands, 0) if kind == FLOAT else e.load_words(operands, 0)
        codes = e.signed_codes(w) if kind == EIGHT_BIT else w
        b.branch(loop)
        b.position_at_end(loop)
        k, sums = b.phi(I64), [b.phi(e.floats if kind == FLOAT else e.words) for _ in range(8)]
        k.add_incoming(ir.Constant(I64, 0), before)
        # Activations of its own for each product: LLVM would multiply the same ones once, and before the loop.
        moved = b.add(operands, b.mul(b.and_(k, ir.Constant(I64, 31)), ir.Constant(I64, 64)))
        for i, total in enumerate(sums):
            total.add_incoming(e.constant_float(0.0) if kind == FLOAT else e.constant(0), before)
            if kind == FLOAT:
                made = total
                for step in range(EACH):
                    made = e.fma(w, e.load_floats(moved, 4 * e.lanes * (8 * step + i)), made)
            else:
                chain = e.chain(0 if kind == EIGHT_BIT else 15, None, None, total)
                for step in range(EACH):
                    chain.step(codes, e.load_words(moved, 4 * e.lanes * (8 * step + i)))
                made = chain.end()
            total.add_incoming(e.settled(made), loop)
        following = b.add(k, ir.Constant(I64, 1))
        k.add_incoming(following, loop)
        b.cbranch(b.icmp_signed("<", following, ir.Constant(I64, STEPS)), loop, after)
        b.position_at_end(after)
        for total in sums:
            value = total if kind == FLOAT else e.to_floats(total)
            e.store_floats(out, value, ir.Constant(I32, e.lanes))

    run = function((types.int64, types.int64), types.void, emit)

    def peak(arguments: int, low: int, high: int) -> None:
        for _ in range(low, high):
            run(load_i64(int64(arguments)), load_i64(int64(arguments + 8)))

    return peak, kernel_signature()


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The fastest of the runs that fit in `seconds`: what others do on the machine only ever adds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure_peaks(kernels: Any, seconds: float) -> dict[str, float]:
    """Giga-operations a second (a product and its addition are two) of all threads, for every kind of loop."""
    isa = find(kernels.name)
    operands, out = np.zeros(8192, np.uint8), np.zeros(16, np.float32)
    arguments = np.array([operands.ctypes.data, out.ctypes.data], np.int64)
    items = 8 * kernels.threads
    peaks = {}
    for kind, products in ((EIGHT_BIT, 4 * isa.lanes), (FOUR_BIT, 4 * isa.lanes), (FLOAT, isa.lanes)):
        engine: Any = new_engine()
        code = object_code(lambda _, kind=kind: build_peak(isa, kind), "peak", isa)  # type: ignore[misc]
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        kernel = engine.get_function_address("peak")
        taken = best_seconds(lambda: kernels._launcher._pool.run(kernel, arguments.ctypes.data, items, 1), seconds)  # noqa: B023
        peaks[kind] = 2 * products * 8 * STEPS * EACH * items / taken / 1e9
    return peaks


def measure(kernels: Any, type: GgmlType, rows: int, cols: int, tokens: int, seconds: float) -> float:
    """Seconds of one product, its activations already quantised."""
    rng = np.random.default_rng(0)
    if BOUND.get(type.name) == FLOAT:  # of any bits some would be subnormal, which take longer
        raw = quantize(rng.standard_normal((rows, cols), np.float32), type)
    else:
        raw = rng.integers(0, 256, (rows, type.row_bytes(cols)), dtype=np.uint8)
    size = kernels.packed_bytes(type, rows, cols)
    w = kernels.pack(raw, type, cols, Arena(size, large_pages=True).bytes[:size])  # as models' weights lie
    x = kernels.activations(rng.standard_normal((tokens, cols)).astype(np.float32))
    out = np.empty((tokens, rows), np.float32)
    kernels.matmul(w, x, out)
    return best_seconds(lambda: kernels.matmul(w, x, out), seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--shapes", default="2048x2048,2048x5632", help="rows x columns")
    parser.add_argument("--tokens", default="1,32,256")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kernels: Any = load_kernels(arguments.kernels, threads=arguments.threads)
    peaks = measure_peaks(kernels, arguments.seconds)
    if not arguments.json:
        shown = ", ".join(f"{kind} {value:.0f}" for kind, value in peaks.items())
        print(f"{kernels.name}, {kernels.threads} threads; peak in GOP/s: {shown}")
    results = []
    for name in arguments.formats.split(","):
        for shape in arguments.shapes.split(","):
            rows, cols = map(int, shape.split("x"))
            for tokens in map(int, arguments.tokens.split(",")):
                taken = measure(kernels, GgmlType[name], rows, cols, tokens, arguments.seconds)
                rate = 2 * rows * cols * tokens / taken / 1e9
                share = rate / peaks[BOUND.get(name, FOUR_BIT)]
                results.append(
                    {"format": name, "rows": rows, "cols": cols, "tokens": tokens, "gop_s": rate, "share": share}
                )
                if not arguments.json:
                    print(f"{name:5} {shape:>11} {tokens:5} tokens  {rate:6.0f} GOP/s  {share:5.0%} of the peak")
    if arguments.json:
        print(json.dumps({"kernels": kernels.name, "threads": kernels.threads, "peak": peaks, "results": results}))
    kernels.close()


if __name__ == "__main__":
    main()
