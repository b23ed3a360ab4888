"""What the ranks of a group sum up in a pass: the same on all of them, however the model is divided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.spec import ModelSpec


class Reduction(NamedTuple):
    """One sum over ranks: of how many `numbers`, and of how many `units` it is made; 0: of none."""

    numbers: int
    units: int = 0


def reductions(spec: ModelSpec, rows: int) -> Iterator[Reduction]:
    """Each reduction of a pass of so many rows, in order: two of d_model numbers a row and layer, and one or two a row
    for each norm that goes over what several ranks have."""
    d, family = spec.d_model, spec.family
    pieces = [part.stop - part.start for part in chunks(rows, CHUNK)]
    for layer, numbers in enumerate(spec.whole):
        units = spec.units(layer)
        mixer, feed_forward = (0, 0) if units is None else (units.mixer.count, units.feed_forward.count)
        for piece in pieces:
            if family.qk_norm == "full":
                yield Reduction(2 * piece, mixer)
            if family.sub_norms:
                yield Reduction(piece, mixer)
            yield Reduction(d * piece, mixer)
            if not numbers.n_experts:
                if family.sub_norms:
                    yield Reduction(piece, feed_forward)
                yield Reduction(d * piece, feed_forward)
        if numbers.n_experts:
            yield Reduction(d * rows, feed_forward)
