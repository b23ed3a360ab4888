"""What the kernels of a residual of several streams take: a part of `abi`."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class MixStreams(NamedTuple):
    """Every stream plus the others, weighted by what the row asks; see `Kernels.mix_streams`. An item is a row."""

    x: Annotated[int, "address of (rows, streams, cols) f32"]
    asked: Annotated[int, "address of (rows, streams) f32; becomes tanh(asked * scale)"]
    coefficients: Annotated[int, "address of (streams * streams, streams) f32"]
    scale: Annotated[int, "address of an f32"]
    weights: Annotated[int, "address of (rows, streams * streams) f32, written"]
    out: Annotated[int, "address of (rows, streams, cols) f32; not x"]
    streams: Annotated[int, "streams"]
    cols: Annotated[int, "columns of a stream"]


class CorrectStreams(NamedTuple):
    """Every stream plus a part of how far a result is from the first; see `Kernels.correct_streams`. An item is a
    row."""

    streams_at: Annotated[int, "address of (rows, streams, cols) f32"]
    result: Annotated[int, "address of (rows, cols) f32"]
    asked: Annotated[int, "address of (rows, streams) f32; becomes tanh(asked * scale)"]
    coefficients: Annotated[int, "address of (streams, streams) f32"]
    scale: Annotated[int, "address of an f32"]
    weights: Annotated[int, "address of (rows, streams) f32, written"]
    out: Annotated[int, "address of (rows, streams, cols) f32; not the streams"]
    factors: Annotated[int, "address of (cols,) f32"]
    first: Annotated[int, "address of (rows, cols) f32: the first stream of out times the factors"]
    streams: Annotated[int, "streams"]
    cols: Annotated[int, "columns of a stream"]


class MatchNorms(NamedTuple):
    """Rows made as long as others: x *= |like| / |x|. An item is a row of `like`."""

    x: Annotated[int, "address of the first row's first f32"]
    x_stride: Annotated[int, "bytes from the rows of one of `like` to those of the next"]
    each_stride: Annotated[int, "bytes from row to row that belong to the same of `like`"]
    each: Annotated[int, "rows of x that belong to one of `like`"]
    like: Annotated[int, "address of rows of f32"]
    like_stride: Annotated[int, "bytes from row to row in like"]
    cols: Annotated[int, "columns"]


class AboveMean(NamedTuple):
    """x = max(x - (mean + deviations * standard deviation), 0), in place. An item is a row."""

    x: Annotated[int, "address of (rows, cols) f32"]
    cols: Annotated[int, "columns, at least two"]
    deviations: Annotated[int, "address of an f32"]
