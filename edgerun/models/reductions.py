"""What the ranks of a group sum up in a pass, as their layers' plans say: the same on all of them, however the model is
divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgerun.models.blocks.declared import Reduction
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.halves import are_halved, pieces
from edgerun.models.plan import plan_of
from edgerun.models.spec import ModelSpec

__all__ = ["Reduction", "reductions"]


def reductions(spec: ModelSpec, rows: int, ranks: int) -> Iterator[Reduction]:
    """Each reduction of a pass of so many rows among so many ranks, in order: two of d_model numbers a row and layer,
    and one or two a row for each norm that goes over what several ranks have."""
    halved = are_halved(spec, rows, ranks)
    sizes = [part.stop - part.start for part in (pieces(rows) if halved else chunks(rows, CHUNK))]
    together = 2 if halved else 1  # pieces whose sums take turns
    for plan in plan_of(spec):
        mixture = plan.mixture
        yield from _of_chunks(plan.mixer.sums + (() if mixture else plan.feed_forward.sums), sizes, together)
        if mixture is not None:
            yield from (Reduction(each.numbers * rows, each.units) for each in mixture.wave_sums)
            yield from _of_chunks(mixture.sums, sizes, together)


def _of_chunks(sums: Sequence[Reduction], sizes: Sequence[int], together: int) -> Iterator[Reduction]:
    """Those of a row for each of these numbers of rows, so many of which take turns."""
    for low in range(0, len(sizes), together):
        for each in sums:
            yield from (Reduction(each.numbers * size, each.units) for size in sizes[low : low + together])
