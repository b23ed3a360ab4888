"""One generation's choice of tokens: the sampler functions in order, with their random numbers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgerun.engine.params import SamplingParams
from edgerun.engine.sampler import (
    F32,
    Positions,
    add_bias,
    check_finite,
    is_greedy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    log_softmax_at,
    penalise,
    pick,
    softmax,
)
from edgerun.errors import UsageError
from edgerun.options import shown


@dataclass(frozen=True)
class Choice:
    """A chosen token. `logprob` and `top` (id, log-probability; best first) only when asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses the tokens of one generation. `seed` is the one in use, also when the caller gave none.

    `eog_ids` are forbidden where the model may not end by itself, `suppressed_ids` always.

    Exactly one random number is drawn for each token, so that a seed always stands for the same draws.
    """

    def __init__(
        self,
        params: SamplingParams,
        vocab_size: int,
        eog_ids: Iterable[int] = (),
        suppressed_ids: Iterable[int] = (),
    ) -> None:
        self.params = params
        self.seed = secrets.randbits(32) if params.seed is None else int(params.seed)
        self._random = np.random.default_rng(self.seed)
        self._bias = dict(params.logit_bias)
        if params.ignore_eos:
            self._bias.update(dict.fromkeys(eog_ids, -np.inf))
        self._bias.update({token: -np.inf for token in suppressed_ids if token < vocab_size})
        beyond = [token for token in self._bias if token >= vocab_size]
        if beyond:
            raise UsageError(f"logit_bias names token {beyond[0]}; the vocabulary has {vocab_size}")

    def next(self, logits: F32, ids: Sequence[int]) -> Choice:
        """Choose after `ids` (prompt and generated) by the model's logits (vocab,), which are overwritten.

        Log-probabilities are the model's own, before anything that `params` does to the logits.
        """
        params = self.params
        raw = logits.copy() if params.logprobs is not None and self._edits else logits
        best = int(logits.argmax())  # the place of a NaN, where there is one
        check_finite(logits[best : best + 1])
        if self._edits:
            logits = self._edit(logits, ids)
            best = int(logits.argmax())
            if np.isnan(logits[best]) or np.isposinf(logits[best]):
                raise UsageError(
                    f"a logits processor made token {best}'s logit {logits[best]}: it must be finite or -inf"
                )
            if np.isneginf(logits[best]):
                raise UsageError("every token is forbidden: logit_bias or a processor leaves nothing to choose from")
        token_id = best if is_greedy(params.temperature) else self._sample(logits)
        if params.logprobs is None:
            return Choice(token_id)
        return self._with_logprobs(token_id, raw, params.logprobs)

    def foreseeing(self) -> Chooser:
        """Another, that draws the same numbers as this one will, for guesses by a smaller model's logits. Callers'
        functions are left out: they see what was chosen, not what might be."""
        twin = copy(self)
        twin.params = replace(self.params, processors=(), logprobs=None)
        twin._random = deepcopy(self._random)
        return twin

    @property
    def _edits(self) -> bool:
        return bool(self.params.processors or self._bias or self.params.has_penalties)

    def _edit(self, logits: F32, ids: Sequence[int]) -> F32:
        params = self.params
        if params.processors:
            so_far = np.array(ids, dtype=np.int32)
            for processor in params.processors:
                answer = _as_logits(processor(so_far, logits))
                if answer.shape != logits.shape:
                    raise UsageError(f"a logits processor gave {answer.shape}; logits are {logits.shape}")
                # Its own array would be written to below; a copy costs little next to the call.
                logits = answer if answer is logits else answer.copy()
        add_bias(logits, self._bias)
        if params.has_penalties:
            recent = ids if params.repeat_last_n < 0 else ids[-params.repeat_last_n :]
            penalise(
                logits,
                np.array(recent, dtype=np.int32),
                params.repeat_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
        return logits

    def _sample(self, logits: F32) -> int:
        params = self.params
        values = logits
        kept: Positions | None = None  # all
        filters: tuple[tuple[Callable[[F32, Any], Positions], float, bool], ...] = (
            (keep_top_k, params.top_k, 0 < params.top_k < len(logits)),
            (keep_typical, params.typical_p, params.typical_p < 1),
            (keep_top_p, params.top_p, params.top_p < 1),
            (keep_min_p, params.min_p, params.min_p > 0),
        )
        for keep, amount, is_on in filters:
            if is_on:
                still = keep(values, amount)
                values, kept = values[still], still if kept is None else kept[still]
        place = pick(softmax(values, params.temperature), float(self._random.random()))
        return place if kept is None else int(kept[place])

    def _with_logprobs(self, token_id: int, raw: F32, n_top: int) -> Choice:
        top = keep_top_k(raw, n_top) if n_top else np.zeros(0, np.intp)
        top = top[np.argsort(-raw[top], kind="stable")]
        logprobs = log_softmax_at(raw, np.append(top, token_id))
        pairs = tuple((int(i), float(p)) for i, p in zip(top, logprobs, strict=False))
        return Choice(token_id, float(logprobs[-1]), pairs)


def _as_logits(answer: object) -> F32:
    """What a processor gave, as f32. UsageError when that is no array of real numbers."""
    array = np.asarray(answer)
    if array.dtype.kind not in "fiu":
        raise UsageError(f"a logits processor must give the logits, got {shown(answer)}")
    with np.errstate(over="ignore"):  # an overflow is +inf or -inf, which the choice looks at
        return array.astype(np.float32, copy=False)
