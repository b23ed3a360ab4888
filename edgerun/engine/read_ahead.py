"""What a small model, that guesses, has read of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgerun.events import never
from edgerun.kv import KvSequence
from edgerun.models import Decoder
from edgerun.models.batch import Batch, Stretch


class ReadAhead:
    """Token ids and their keys and values in the small model; `follow` makes it hold other ids."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self._decoder = decoder
        self._sequence: KvSequence = decoder.new_cache(capacity)
        self._read: list[int] = []
        self._followed: Sequence[int] = ()  # with this list it agrees, up to:
        self._agreed = 0

    @property
    def n_read(self) -> int:
        """Tokens, those among them that turned out otherwise; 0 when others have taken the memory."""
        return min(len(self._read), self._sequence.length)

    @property
    def spare(self) -> bool:
        """Whether nobody guesses by it now, so that others may have the memory: what was read is read again then."""
        return self._sequence.spare

    @spare.setter
    def spare(self, value: bool) -> None:
        self._sequence.spare = value

    def follow(self, ids: Sequence[int], most: int) -> NDArray[np.float32] | None:
        """Read what is new of `ids`, at most so many; logits (vocab,) of what follows them all, or None when some are
        still to be read."""
        self._keep(self._common(ids))
        known = len(self._read)
        if len(ids) - known > most:
            self._step(ids[known : known + most], want_logits=False)
            return None
        return self._step(ids[known:], want_logits=True)

    def append(self, token_id: int) -> NDArray[np.float32] | None:
        """Read one more; logits of what follows it."""
        return self._step([token_id], want_logits=True)

    def _step(self, ids: Sequence[int], *, want_logits: bool) -> NDArray[np.float32] | None:
        stretch = Stretch(self._sequence, list(ids), "last" if want_logits else "none")
        (rows,) = self._decoder.step(Batch((stretch,)), cancelled=never)
        self._read.extend(ids)
        return None if rows is None else rows[0]

    def _common(self, ids: Sequence[int]) -> int:
        """How many tokens it has in common with `ids`; of these the last is read again, for its logits."""
        most = min(len(self._read), len(ids) - 1)
        n = min(self._agreed, most) if ids is self._followed else 0
        while n < most and self._read[n] == ids[n]:
            n += 1
        self._followed, self._agreed = ids, n
        return n

    def _keep(self, n: int) -> None:
        """The first `n` tokens, if it can go on from there."""
        n = min(n, self._sequence.length)  # after an interrupt
        if n < self._sequence.length:
            n = self._sequence.held_from(n)
            self._sequence.truncate(n)
        del self._read[n:]
