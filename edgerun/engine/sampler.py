"""Choosing the next token: small functions over logits, fast for vocabularies of 150,000 entries.

The `keep_*` functions take the logits (n,) of the candidates and give the positions that stay, in ascending
order, at least one; of equal logits the lower position goes first. The meaning of every option, and the order
in which they apply, is llama.cpp's (`llama_sampler_init_*` in src/llama-sampling.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Positions = NDArray[np.intp]

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)  # of those that are exact
_FIRST_GUESS = 256  # candidates looked at before a cumulative filter considers more


def keep_top_k(logits: F32, k: int) -> Positions:
    """The k largest; all when k is 0 or not below n."""
    n = len(logits)
    if k <= 0 or k >= n:
        return np.arange(n)
    near = _near(logits, k)
    if len(near) <= k:
        return near
    values = logits[near]
    smallest = np.partition(values, len(values) - k)[len(values) - k]
    above = near[values > smallest]
    ties = near[values == smallest][: k - len(above)]
    return np.sort(np.concatenate((above, ties)))


def _near(logits: F32, k: int) -> Positions:
    """Positions, ascending, with the k largest among them: all that are not below the k-th largest maximum of columns,
    into which the logits are folded; only the columns that reach it are looked through."""
    n = len(logits)
    width = 1 << n.bit_length() // 2 + 3
    rows = n // width
    if rows < 4 or k > width // 4:
        return np.arange(n)
    folded, rest = logits[: rows * width].reshape(rows, width), logits[rows * width :]
    maxima = folded.max(axis=0)
    floor = np.partition(maxima, width - k)[width - k]
    if np.isneginf(floor):  # of what is forbidden
        return np.arange(n)
    columns = np.flatnonzero(maxima >= floor)
    if len(columns) > width // 16:
        return np.flatnonzero(logits >= floor)
    row, column = np.nonzero(folded[:, columns] >= floor)
    return np.concatenate((row * width + columns[column], rows * width + np.flatnonzero(rest >= floor)))


def keep_top_p(logits: F32, p: float) -> Positions:
    """The fewest likeliest whose probabilities sum to at least `p`."""
    n = len(logits)
    if p >= 1:
        return np.arange(n)
    probabilities = softmax(logits)
    # Sorting a whole vocabulary costs ten milliseconds. The first few mostly suffice; the others that could be wanted
    # are at least so likely that all which are less cannot make up the rest.
    kept = _until(keep_top_k(logits, _FIRST_GUESS), logits, probabilities, p, inclusive=True)
    if kept is None:
        kept = _until(np.flatnonzero(probabilities >= (1 - p) / n), logits, probabilities, p, inclusive=True)
    if kept is None:  # by rounding
        kept = _until(np.arange(n), logits, probabilities, p, inclusive=True)
    return np.arange(n) if kept is None else kept


def keep_min_p(logits: F32, p: float) -> Positions:
    """Those at least `p` times as likely as the likeliest."""
    if p <= 0:
        return np.arange(len(logits))
    return np.flatnonzero(logits >= logits.max() + np.float32(np.log(p)))


def keep_typical(logits: F32, p: float) -> Positions:
    """Those whose surprise is nearest to the expected, until they sum to more than `p` (arXiv 2202.00666)."""
    if p >= 1:
        return np.arange(len(logits))
    probabilities = softmax(logits)
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    entropy = float(probabilities @ surprise)
    return _keep_until(-np.abs(surprise - entropy), probabilities, p, inclusive=False)


def _keep_until(order: F64, probabilities: F64, p: float, *, inclusive: bool) -> Positions:
    """Positions by falling `order` until their probabilities sum to p. Looks at a few first, then at more."""
    n = len(order)
    size = min(_FIRST_GUESS, n)
    while True:
        near = np.arange(n) if size == n else np.sort(_largest(order, size))
        kept = _until(near, order, probabilities, p, inclusive=inclusive)
        if kept is not None:
            return kept
        if size == n:
            return near
        size = min(size * 16, n)


def _until(
    near: Positions, order: NDArray[np.floating[Any]], probabilities: F64, p: float, *, inclusive: bool
) -> Positions | None:
    """Of the positions `near` (ascending; none that is not among them has a higher order), by falling `order`, those
    until their probabilities sum to p (>= p if inclusive, else > p). None: all of them do not."""
    near = near[np.argsort(-order[near], kind="stable")]  # equal ones by position
    total = np.cumsum(probabilities[near])
    reached = int(np.searchsorted(total, p, side="left" if inclusive else "right"))
    return np.sort(near[: reached + 1]) if reached < len(near) else None


def _largest(order: F64, size: int) -> Positions:
    n = len(order)
    smallest = np.partition(order, n - size)[n - size]
    above = np.flatnonzero(order > smallest)
    return np.concatenate((above, np.flatnonzero(order == smallest)[: size - len(above)]))


def penalise(logits: F32, recent: NDArray[np.int32], repeat: float, frequency: float, presence: float) -> None:
    """Push down, in place, tokens that occur in `recent`: divide (or multiply, below 0) by `repeat`, then
    subtract count * frequency + presence."""
    tokens, counts = np.unique(recent, return_counts=True)
    before = logits[tokens]
    factor = np.float32(np.clip(repeat, _SMALLEST, _LARGEST))
    with np.errstate(over="ignore"):  # of any penalty: the results are brought back into f32's range
        changed = np.where(before <= 0, before * factor, before / factor)
        less = np.clip(counts * frequency + presence, -_LARGEST, _LARGEST).astype(np.float32)
        logits[tokens] = _in_range(changed - less, before)


def add_bias(logits: F32, bias: Mapping[int, float]) -> None:
    """logits[id] += amount, in place. IndexError for an id that is not in the vocabulary."""
    for token, amount in bias.items():
        if np.isneginf(amount):
            logits[token] = -np.inf
            continue
        with np.errstate(over="ignore"):
            raised = logits[token] + np.float32(np.clip(amount, -_LARGEST, _LARGEST))
        logits[token] = _in_range(raised, logits[token])


def _in_range(values: F32, before: F32) -> F32:
    """What overflowed as the largest number there is: only what was forbidden (-inf) before stays forbidden, and no
    logit becomes +inf, whose probability is no number."""
    return np.where(np.isneginf(before), before, np.clip(values, -_LARGEST, _LARGEST)).astype(np.float32)


def softmax(logits: F32, temperature: float = 1.0) -> F64:
    """Probabilities (n,) f64 of logits (n,) at a temperature that is not `is_greedy`; those of -inf are 0."""
    # Less than the largest before the division: then what overflows can only become -inf, which has probability 0.
    with np.errstate(over="ignore"):
        below = logits - logits.max()
        if temperature != 1:
            below /= np.float32(min(temperature, _LARGEST))
    # exp in f32 is four times as fast, and as exact as the logits are; the sum is what needs f64.
    weights: F64 = np.exp(below).astype(np.float64)
    weights /= weights.sum()
    return weights


def check_finite(values: NDArray[np.floating[Any]]) -> None:
    """FormatError when what the model computed has NaN or +inf in it."""
    largest = values.max()  # NaN, where there is one
    if not np.isfinite(largest):
        kind = "NaN" if np.isnan(largest) else str(largest)
        raise FormatError(f"the model's results are not numbers ({kind}): its weights or its file are damaged")


def is_greedy(temperature: float) -> bool:
    """Whether a temperature is 0, or so near that f32 has no ordinary number for it: the likeliest token is taken."""
    return temperature < _SMALLEST


def log_softmax_at(logits: F32, positions: Positions) -> F64:
    """Log-probabilities of some positions, without those of all others."""
    top = logits.max()
    log_total = float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    chosen: F64 = logits[positions].astype(np.float64)
    chosen -= float(top) + log_total
    return chosen


def pick(probabilities: F64, u: float) -> int:
    """The position where the running sum of probabilities passes u, a uniform number in [0, 1).

    The order is that of the positions, not of the probabilities: two tokens that nearly tie do not change
    places when another kernel rounds otherwise.
    """
    total = np.cumsum(probabilities)
    place = int(np.searchsorted(total, u * total[-1], side="right"))
    if place < len(total):
        return place
    return int(np.flatnonzero(probabilities)[-1])  # u * total was rounded up to the total
