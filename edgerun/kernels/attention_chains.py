"""Chains of sums in attention: rows of scalars times vectors, as many rows as registers hold sums for.

A lane's sum is one chain of fused multiply-adds from zero in the order of the steps, however many rows and vectors are
summed beside it. Numba has no loop over tuples of registers, so twice as many rows are made of two halves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import int64, njit

from edgerun.kernels.ops import Ops


class Chains(NamedTuple):
    """Over `steps` of rows of scalars a (addresses of f32, side by side) times the two vectors that a loader gives at
    b, `step` bytes from one to the next; sums are two vectors of each row, row by row.

    one, two, four, eight (rows a, steps, b, step): of as many rows. one_twice, two_twice (rows a, b, rows c, d, steps,
    step): rows a with b, rows c with d. wide(a, steps, b, step): of one row with eight vectors, `apart` bytes from pair
    to pair of them."""

    one: Any
    two: Any
    four: Any
    eight: Any
    one_twice: Any
    two_twice: Any
    wide: Any


def build_load_two(load: Any, vector: int) -> Any:
    """The two vectors of `vector` bytes at an address, widened by `load`."""

    @njit(forceinline=True)
    def load_two(b: int) -> Any:
        return load(int64(b)), load(int64(b + vector))

    return load_two


def build_chains(ops: Ops, load_two: Any, apart: int = 0) -> Chains:
    """load_two(address): the two vectors there. All of it is inlined where it is used."""
    zero, fma, splat_load = ops.zero_floats, ops.fma, ops.splat_load

    @njit(forceinline=True)
    def none_one() -> Any:
        return zero(), zero()

    @njit(forceinline=True)
    def add_one(a: Any, at: int, x: Any, y: Any, r: Any) -> Any:
        w = splat_load(int64(a[0] + at))
        return fma(w, x, r[0]), fma(w, y, r[1])

    none_two, add_two = _twice(none_one, add_one, 1)
    none_four, add_four = _twice(none_two, add_two, 2)
    none_eight, add_eight = _twice(none_four, add_four, 4)

    def sums_of(none: Any, add: Any) -> Any:
        @njit(forceinline=True)
        def sums(a: Any, steps: int, b: int, step: int) -> Any:
            r = none()
            for at in range(0, 4 * steps, 4):
                x, y = load_two(b)
                r = add(a, at, x, y, r)
                b += step
            return r

        return sums

    def twice_of(none: Any, add: Any) -> Any:
        @njit(forceinline=True)
        def sums(a: Any, b: int, c: Any, d: int, steps: int, step: int) -> Any:
            r, s = none(), none()
            for at in range(0, 4 * steps, 4):
                x, y = load_two(b)
                r = add(a, at, x, y, r)
                x, y = load_two(d)
                s = add(c, at, x, y, s)
                b += step
                d += step
            return r + s

        return sums

    @njit(forceinline=True)
    def wide(a: Any, steps: int, b: int, step: int) -> Any:
        r, s, t, u = none_one(), none_one(), none_one(), none_one()
        for at in range(0, 4 * steps, 4):
            x, y = load_two(b)
            r = add_one(a, at, x, y, r)
            x, y = load_two(b + apart)
            s = add_one(a, at, x, y, s)
            x, y = load_two(b + 2 * apart)
            t = add_one(a, at, x, y, t)
            x, y = load_two(b + 3 * apart)
            u = add_one(a, at, x, y, u)
            b += step
        return r + s + t + u

    return Chains(
        sums_of(none_one, add_one),
        sums_of(none_two, add_two),
        sums_of(none_four, add_four),
        sums_of(none_eight, add_eight),
        twice_of(none_one, add_one),
        twice_of(none_two, add_two),
        wide,
    )


def _twice(none: Any, add: Any, rows: int) -> tuple[Any, Any]:
    """`none` and `add` of twice as many rows."""
    sums = 2 * rows  # of a half: its vectors

    @njit(forceinline=True)
    def none_twice() -> Any:
        return none() + none()

    @njit(forceinline=True)
    def add_twice(a: Any, at: int, x: Any, y: Any, r: Any) -> Any:
        return add(a[:rows], at, x, y, r[:sums]) + add(a[rows:], at, x, y, r[sums:])

    return none_twice, add_twice
