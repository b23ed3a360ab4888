"""Vector types and operations for Numba: what its auto-vectoriser cannot do, spelled out in LLVM.

A Numba type whose data model is an LLVM vector, and intrinsics over it. Everything here is plain LLVM, valid on
any processor (LLVM splits what is wider than its registers); what differs between processors is in `isa.py`.
Addresses are int64; all loads and stores are unaligned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()

Emit = Callable[..., Any]  # (builder, *values) -> value


class Vector(types.Type):
    """A fixed-width SIMD vector as a Numba type."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"vector<{lanes} x {element}>")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


@cache
def vector(element: Any, lanes: int) -> Vector:
    """The one Numba type for `lanes` elements."""
    return Vector(element, lanes)


def declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """The LLVM intrinsic or external function `name` in the module being built."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def constant(vec: Vector, values: int | float | list[int] | list[float]) -> Any:
    """An LLVM constant vector; a scalar fills every lane."""
    listed = values if isinstance(values, list) else [values] * vec.llvm.count
    return ir.Constant(vec.llvm, listed)


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """The scalar in every lane."""
    vec = ir.VectorType(value.type, lanes)
    undefined = ir.Constant(vec, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def shuffle(builder: Any, a: Any, b: Any, indices: list[int]) -> Any:
    """LLVM's shufflevector."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(indices)), indices))


def concatenated(builder: Any, parts: list[Any]) -> Any:
    """One vector of parts that are as long as each other, a power of two of them."""
    while len(parts) > 1:
        places = list(range(2 * parts[0].type.count))
        parts = [shuffle(builder, low, high, places) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def vector_of(builder: Any, elements: list[Any]) -> Any:
    """A vector of single values."""
    vector = ir.Constant(ir.VectorType(elements[0].type, len(elements)), ir.Undefined)
    for place, element in enumerate(elements):
        vector = builder.insert_element(vector, element, ir.Constant(I32, place))
    return vector


def transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """L vectors of W elements, both powers of two, W no more than L -> their W columns of L elements."""
    lanes, width = len(rows), rows[0].type.count
    several = lanes // width
    rows = [concatenated(builder, rows[at : at + several]) for at in range(0, lanes, several)]
    # All elements of even places before all of odd ones: so a place's lowest bit becomes its highest. After as many
    # times as a column's number has bits, these come first.
    for _ in range(width.bit_length() - 1):
        rows = [
            shuffle(builder, one, other, list(range(odd, 2 * lanes, 2)))
            for odd in (0, 1)
            for one, other in zip(rows[::2], rows[1::2], strict=True)
        ]
    return rows


def function(arguments: tuple[Any, ...], result: Any, emit: Emit) -> Any:
    """A Numba intrinsic of up to five arguments from a function that emits LLVM."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = emit(builder, *values)
        return context.get_dummy_value() if result is types.void else value

    signature = result(*arguments)
    if len(arguments) == 0:

        @intrinsic
        def made(typing: Any) -> Any:
            return signature, generate
    elif len(arguments) == 1:

        @intrinsic
        def made(typing: Any, a: Any) -> Any:
            return signature, generate
    elif len(arguments) == 2:

        @intrinsic
        def made(typing: Any, a: Any, b: Any) -> Any:
            return signature, generate
    elif len(arguments) == 3:

        @intrinsic
        def made(typing: Any, a: Any, b: Any, c: Any) -> Any:
            return signature, generate
    elif len(arguments) == 4:

        @intrinsic
        def made(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
            return signature, generate
    else:

        @intrinsic
        def made(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
            return signature, generate

    return made


def _pointer(builder: Any, address: Any, to: Any) -> Any:
    return builder.inttoptr(address, to.as_pointer())


def _load(builder: Any, address: Any, to: Any) -> Any:
    value = builder.load(_pointer(builder, address, to))
    value.align = 1
    return value


def loader(vec: Vector) -> Any:
    """address -> vector."""
    return function((types.int64,), vec, lambda b, a: _load(b, a, vec.llvm))


def storer(vec: Vector) -> Any:
    """(address, vector) -> None."""

    def emit(b: Any, address: Any, value: Any) -> None:
        b.store(value, _pointer(b, address, vec.llvm)).align = 1

    return function((types.int64, vec), types.void, emit)


def first_lanes(b: Any, lanes: int, n: Any) -> Any:
    """A mask of the first n (i32) lanes."""
    vec = ir.VectorType(I32, lanes)
    return b.icmp_signed("<", ir.Constant(vec, list(range(lanes))), splat(b, n, lanes))


def masked_load(b: Any, kind: Any, address: Any, n: Any) -> Any:
    """A vector of f32 of which the first n (i32) lanes are loaded, the rest zero; never touches memory beyond."""
    pointer, mask = _pointer(b, address, kind), first_lanes(b, kind.count, n)
    load = declare(b, f"llvm.masked.load.v{kind.count}f32.p0", kind, [pointer.type, I32, mask.type, kind])
    return b.call(load, (pointer, ir.Constant(I32, 1), mask, ir.Constant(kind, [0.0] * kind.count)))


def masked_store(b: Any, value: Any, address: Any, n: Any) -> None:
    """Store the first n (i32) lanes of a vector of f32."""
    kind = value.type
    pointer, mask = _pointer(b, address, kind), first_lanes(b, kind.count, n)
    store = declare(b, f"llvm.masked.store.v{kind.count}f32.p0", ir.VoidType(), [kind, pointer.type, I32, mask.type])
    b.call(store, (value, pointer, ir.Constant(I32, 1), mask))


def masked_loader(vec: Vector) -> Any:
    """(address, n) -> vector: `masked_load`."""
    return function((types.int64, types.int64), vec, lambda b, a, n: masked_load(b, vec.llvm, a, b.trunc(n, I32)))


def masked_storer(vec: Vector) -> Any:
    """(address, vector, n): `masked_store`."""
    return function(
        (types.int64, vec, types.int64), types.void, lambda b, a, value, n: masked_store(b, value, a, b.trunc(n, I32))
    )


def scalar_loader(llvm: Any, numba_type: Any) -> Any:
    """address -> scalar."""
    return function((types.int64,), numba_type, lambda b, a: _load(b, a, llvm))


load_i64 = scalar_loader(I64, types.int64)
load_f32 = scalar_loader(FLOAT, types.float32)
load_f16 = function((types.int64,), types.float32, lambda b, a: b.fpext(_load(b, a, HALF), FLOAT))
load_u8 = scalar_loader(I8, types.uint8)
load_u32 = scalar_loader(I32, types.uint32)


def _store_scalar(llvm: Any, numba_type: Any) -> Any:
    def emit(b: Any, address: Any, value: Any) -> None:
        b.store(value, _pointer(b, address, llvm)).align = 1

    return function((types.int64, numba_type), types.void, emit)


store_i64 = _store_scalar(I64, types.int64)
store_f32 = _store_scalar(FLOAT, types.float32)
store_u8 = _store_scalar(I8, types.uint8)
store_i16 = _store_scalar(I16, types.int16)
store_i32 = _store_scalar(I32, types.int32)


def _store_half(b: Any, address: Any, value: Any) -> None:
    b.store(b.fptrunc(value, HALF), _pointer(b, address, HALF)).align = 1


store_f16 = function((types.int64, types.float32), types.void, _store_half)


def _prefetch(b: Any, address: Any) -> None:
    pointer = _pointer(b, address, I8)
    call = declare(b, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, I32, I32, I32])
    b.call(call, (pointer, *(ir.Constant(I32, v) for v in (0, 3, 1))))  # read, keep in all caches, data


prefetch = function((types.int64,), types.void, _prefetch)


# Atomics, for the thread pool. Every counter is an int64 on a cache line of its own.


load_acquire = function((types.int64,), types.int64, lambda b, a: b.load_atomic(_pointer(b, a, I64), "acquire", 8))
store_release = function(
    (types.int64, types.int64), types.void, lambda b, a, v: b.store_atomic(v, _pointer(b, a, I64), "release", 8)
)
fetch_add = function(
    (types.int64, types.int64), types.int64, lambda b, a, v: b.atomic_rmw("add", _pointer(b, a, I64), v, "seq_cst")
)
exchange = function(
    (types.int64, types.int64), types.int64, lambda b, a, v: b.atomic_rmw("xchg", _pointer(b, a, I64), v, "seq_cst")
)


def _call_kernel(b: Any, address: Any, arguments: Any, low: Any, high: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    b.call(_pointer(b, address, kind), (arguments, low, high))


call_kernel = function((types.int64,) * 4, types.void, _call_kernel)
