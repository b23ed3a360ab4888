"""What a request has of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from edgerun.engine.drafts import Draft
from edgerun.engine.request import Request
from edgerun.models import Stretch
from edgerun.models.batch import Want

AnyRequest = Request[Any]


class Part(NamedTuple):
    """Its next ids, and guesses that may follow them."""

    request: AnyRequest
    ids: Sequence[int]
    want: Want
    draft: Draft | None = None  # guesses, that follow its ids

    @property
    def is_next(self) -> bool:
        """Whether it is one token, which mostly was chosen just now."""
        return len(self.ids) == 1

    @property
    def rows(self) -> int:
        return len(self.ids) + (0 if self.draft is None else len(self.draft.ids))

    @property
    def stretch(self) -> Stretch:
        if self.draft is None:
            return Stretch(self.request.context.sequence, self.ids, self.want)
        return Stretch(self.request.context.sequence, [*self.ids, *self.draft.ids], "all")
