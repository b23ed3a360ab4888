"""What the ranks of a group sum up in a pass: the same on all of them, however the model is divided."""

from __future__ import annotations

from collections.abc import Iterator

from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.spec import ModelSpec


def reductions(spec: ModelSpec, rows: int) -> Iterator[int]:
    """How many numbers each reduction of a pass of so many rows sums up, in order: two of d_model a row and layer, and
    one or two a row for each norm that goes over what several ranks have."""
    d, family = spec.d_model, spec.family
    pieces = [part.stop - part.start for part in chunks(rows, CHUNK)]
    for numbers in spec.whole:
        for piece in pieces:
            if family.qk_norm == "full":
                yield 2 * piece
            if family.sub_norms:
                yield piece
            yield d * piece
            if not numbers.n_experts:
                if family.sub_norms:
                    yield piece
                yield d * piece
        if numbers.n_experts:
            yield d * rows
