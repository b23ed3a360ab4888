"""Several streams side by side: how they are mixed and corrected, and gates that let only what stands out through."""

from __future__ import annotations

from edgerun.kernels.interface import F32
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants
from edgerun.kernels.stream_abi import AboveMean, CorrectStreams, MatchNorms, MixStreams
from edgerun.kernels.stream_checks import check_above, check_correct, check_mix, check_norms
from edgerun.kernels.stream_weights import StreamWeights

_GRAIN = 2  # rows


def mix_streams(launcher: Launcher, x: F32, shares: StreamWeights, out: F32) -> None:
    """See `interface.Kernels.mix_streams`."""
    check_mix(x, shares, out)
    rows, streams, cols = x.shape
    launcher.launch(
        "mix_streams",
        MixStreams(
            x=address(x),
            asked=address(shares.asked),
            coefficients=address(shares.coefficients),
            scale=constants(shares.scale),
            weights=address(shares.weights),
            out=address(out),
            streams=streams,
            cols=cols,
        ),
        rows,
        _GRAIN,
    )


def correct_streams(
    launcher: Launcher,
    x: F32,
    result: F32,
    shares: StreamWeights,
    out: F32,
    factors: F32,
    first: F32,
) -> None:
    """See `interface.Kernels.correct_streams`."""
    check_correct(x, result, shares, out, factors, first)
    rows, streams, cols = x.shape
    launcher.launch(
        "correct_streams",
        CorrectStreams(
            streams_at=address(x),
            result=address(result),
            asked=address(shares.asked),
            coefficients=address(shares.coefficients),
            scale=constants(shares.scale),
            weights=address(shares.weights),
            out=address(out),
            factors=address(factors),
            first=address(first),
            streams=streams,
            cols=cols,
        ),
        rows,
        _GRAIN,
    )


def match_norms(launcher: Launcher, x: F32, like: F32) -> None:
    """See `interface.Kernels.match_norms`."""
    check_norms(x, like)
    rows, each, cols = x.shape
    arguments = MatchNorms(address(x), x.strides[0], x.strides[1], each, address(like), like.strides[0], cols)
    launcher.launch("match_norms", arguments, rows, _GRAIN)


def above_mean(launcher: Launcher, x: F32, deviations: float) -> None:
    """See `interface.Kernels.above_mean`."""
    check_above(x)
    launcher.launch("above_mean", AboveMean(address(x), x.shape[1], constants(deviations)), len(x), _GRAIN)
