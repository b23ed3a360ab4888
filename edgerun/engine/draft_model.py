"""Guesses by a small model with the same vocabulary.

It guesses what the large one would choose if its logits were the small one's: with the same options, and the same
random numbers, so that the two often agree where they are sampled, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from time import perf_counter

from edgerun.engine.chooser import Chooser
from edgerun.engine.context import Context
from edgerun.engine.drafts import MOST_DRAFTED, Drafter
from edgerun.engine.read_ahead import ReadAhead
from edgerun.models import Decoder

_PRIORS = {0: 0.6}
_MOST_READ = 128  # tokens of a prompt in a step of the large model: others wait meanwhile
_FORGOTTEN = 256  # steps without guesses, after which what they take is not known any more
_MEASURED = 9  # drafts, of which the median counts


class DraftModel:
    """Shared by all requests. capacity: positions of a sequence that it can read. n_vocab: its first logits, that are
    tokens."""

    def __init__(self, decoder: Decoder, capacity: int, n_vocab: int) -> None:
        self.decoder = decoder
        self.capacity = capacity
        self.n_vocab = n_vocab
        self._seconds: deque[float] = deque(maxlen=_MEASURED)
        self._n_skipped = 0
        self._is_prepared = False  # once it has guessed
        self.token_s = 0.0  # that a guess takes

    def drafter(self, context: Context, chooser: Chooser) -> ModelDrafter:
        """For one request. What was read of its context before is read no more."""
        if context.read_ahead is None:
            context.read_ahead = ReadAhead(self.decoder, self.capacity)
        return ModelDrafter(self, context.read_ahead, chooser)

    def saw(self, guesses: int, seconds: float) -> None:
        """So many guesses took `seconds`. The first do not count: they were prepared."""
        self._n_skipped = 0
        if self._is_prepared:
            self._seconds.append(seconds / guesses)
            self.token_s = median(self._seconds)
        self._is_prepared = True

    def skipped(self) -> None:
        """No guess was wanted of it. If that was so for long, it is asked again: it may have been a bad hour."""
        self._n_skipped += 1
        if self._n_skipped > _FORGOTTEN:
            self._seconds.clear()
            self.token_s, self._n_skipped = 0.0, 0


class ModelDrafter(Drafter):
    """Of one request."""

    def __init__(self, model: DraftModel, reading: ReadAhead, chooser: Chooser) -> None:
        super().__init__(_PRIORS)
        self._model = model
        self._reading = reading
        self._chooser = chooser

    @property
    def token_s(self) -> float:
        """See `Drafter`."""
        return self._model.token_s

    def _offered(self, ids: Sequence[int]) -> tuple[int, int]:
        return max(0, min(MOST_DRAFTED, self._model.capacity - len(ids))), 0

    def propose(self, ids: Sequence[int], n: int) -> Sequence[int]:
        """See `Drafter`. None as long as a prompt is not read."""
        is_behind = len(ids) - self._reading.n_read > MOST_DRAFTED + 1
        started = perf_counter()
        logits = self._reading.follow(ids, _MOST_READ)
        if logits is None:
            return []
        chooser, so_far = self._chooser.foreseeing(), list(ids)
        while logits is not None:
            so_far.append(chooser.next(logits[: self._model.n_vocab], so_far).token_id)
            if len(so_far) == len(ids) + n:
                break
            logits = self._reading.append(so_far[-1])
        if not is_behind:
            self._model.saw(n, perf_counter() - started)
        return so_far[len(ids) :]

    def skipped(self) -> None:
        """See `Drafter`."""
        super().skipped()
        self._model.skipped()
