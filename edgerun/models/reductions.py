"""What the ranks of a group sum up in a pass: the same on all of them, however the model is divided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.halves import are_halved, pieces
from edgerun.models.spec import LayerNumbers, ModelSpec


class Reduction(NamedTuple):
    """One sum over ranks: of how many `numbers`, and of how many `units` it is made; 0: of none."""

    numbers: int
    units: int = 0


def reductions(spec: ModelSpec, rows: int, ranks: int) -> Iterator[Reduction]:
    """Each reduction of a pass of so many rows among so many ranks, in order: two of d_model numbers a row and layer,
    and one or two a row for each norm that goes over what several ranks have."""
    halved = are_halved(spec, rows, ranks)
    sizes = [part.stop - part.start for part in (pieces(rows) if halved else chunks(rows, CHUNK))]
    together = 2 if halved else 1  # pieces whose sums take turns
    for layer, numbers in enumerate(spec.whole):
        units = spec.units(layer)
        mixer, feed_forward = (0, 0) if units is None else (units.mixer.count, units.feed_forward.count)
        for low in range(0, len(sizes), together):
            for width, unit_count in _sums(spec, numbers, mixer, feed_forward):
                yield from (Reduction(width * size, unit_count) for size in sizes[low : low + together])
        if numbers.n_experts:
            yield Reduction(spec.d_model * rows, feed_forward)


def _sums(spec: ModelSpec, numbers: LayerNumbers, mixer: int, feed_forward: int) -> Iterator[Reduction]:
    """Of one row in a layer, but those of experts. mixer, feed_forward: how many units each is made of."""
    if spec.family.qk_norm == "full":
        yield Reduction(2, mixer)
    if spec.family.sub_norms:
        yield Reduction(1, mixer)
    yield Reduction(spec.d_model, mixer)
    if not numbers.n_experts:
        if spec.family.sub_norms:
            yield Reduction(1, feed_forward)
        yield Reduction(spec.d_model, feed_forward)
