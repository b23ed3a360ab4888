"""Every way in which edgerun computes a text: all must give the same bits. For `vary_families.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

_ROOM = 256  # positions of a sequence


def ways_that_differ(gguf: Any, spec: Any, store: Any, kernels: Any, ids: list[int], seed: int) -> list[str]:
    """Which ways of computing `ids` give other logits than all at once."""
    from edgerun.kv import KvLedger
    from edgerun.models import Decoder

    decoder = Decoder(spec, store, kernels, kv_ledger=KvLedger(1 << 30))
    rng = np.random.default_rng(seed)
    whole = _rows(decoder, decoder.new_cache(_ROOM), ids, [len(ids)])
    wrong = []
    for what, rows in _ways(decoder, gguf, ids, rng):
        at = len(ids) - len(rows)
        if not np.array_equal(rows, whole[at:]):
            first = int(np.flatnonzero((rows != whole[at:]).any(axis=1))[0]) + at
            wrong.append(f"{what} it differs from position {first} on")
    return wrong


def _rows(decoder: Any, cache: Any, ids: list[int], ends: list[int]) -> np.ndarray:
    """Logits (tokens, vocab) f32 of what comes after the cache's positions, cut at `ends`."""
    cuts = [cache.length, *(end for end in ends if end > cache.length)]
    stretches = [ids[low:high] for low, high in zip(cuts, cuts[1:], strict=False)]
    return np.concatenate([decoder.forward(each, cache, logits="all") for each in stretches])


def _ways(decoder: Any, gguf: Any, ids: list[int], rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """What was done -> the logits (last tokens, vocab) f32 of the text's end."""
    from edgerun.models import Decoder

    n, new = len(ids), lambda: decoder.new_cache(_ROOM)
    cuts = sorted(rng.choice(np.arange(1, n), min(4, n - 1), replace=False).tolist())
    singles = list(range(1, n + 1))
    yield f"in chunks {cuts}", _rows(decoder, new(), ids, [*cuts, n])
    yield "token by token", _rows(decoder, new(), ids, singles)
    eager = Decoder(decoder.spec, decoder.store, decoder.kernels)
    eager.passes.recording = None
    yield "not recorded", _rows(eager, eager.new_cache(_ROOM), ids, singles)
    yield "with strangers", _with_strangers(decoder, ids, rng)
    cut = int(rng.integers(n // 2, max(n - 1, n // 2 + 1)))
    other = [*ids[:cut], *rng.integers(0, decoder.spec.vocab_size, 5).tolist()]
    cache = new()
    _rows(decoder, cache, ids, [cut])
    copy, forms = cache.copy(cut), cache.saved_forms()
    saved = {name: cache.saved(name).copy() for name in forms}
    _rows(decoder, copy, other, [len(other)])
    yield f"beside a copy of the first {cut}", _rows(decoder, cache, ids, [n])
    copy.truncate(copy.held_from(cut))
    yield f"after the copy was cut back to {copy.length}", _rows(decoder, copy, ids, singles)
    cache.truncate(cache.held_from(int(rng.integers(1, n))))
    yield f"cut back to {cache.length}", _rows(decoder, cache, ids, [n])
    restored = new()
    _restore(restored, cut, forms, saved)
    yield f"restored at {cut}", _rows(decoder, restored, ids, singles)
    cache.remember(ids)
    recalled = new()
    recalled.recall(ids[:-1])
    yield f"with {recalled.length} of another", _rows(decoder, recalled, ids, [n])
    for what, store in _streamed(decoder, gguf, rng):
        with closing(store):
            streamed = Decoder(decoder.spec, store, decoder.kernels)
            yield what, _rows(streamed, streamed.new_cache(_ROOM), ids, [cut, *singles[cut:]])


def _with_strangers(decoder: Any, ids: list[int], rng: np.random.Generator) -> np.ndarray:
    """In steps beside those of other texts, which come and go."""
    from edgerun.models import Batch, Stretch

    cache, rows, strangers = decoder.new_cache(_ROOM), [], []
    while cache.length < len(ids):
        many = int(rng.integers(1, 12)) if rng.random() < 0.3 else 1
        stretches = [Stretch(cache, ids[cache.length :][:many], "all")]
        strangers = [each for each in strangers if rng.random() < 0.8]
        strangers += [decoder.new_cache(_ROOM) for _ in range(int(rng.integers(0, 3)))]
        for each in strangers:
            words = rng.integers(0, decoder.spec.vocab_size, int(rng.choice([1, 1, 1, 7]))).tolist()
            stretches.append(Stretch(each, words))
        rows.append(decoder.step(Batch(stretches))[0])
    return np.concatenate(rows)


def _restore(cache: Any, length: int, forms: Any, saved: dict[str, np.ndarray]) -> None:
    """As a saved session is read."""
    for name, place in cache.make_ready(length, forms).items():
        place[...] = saved[name]
    cache.restored(length)


def _streamed(decoder: Any, gguf: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Stores that hold as little of the weights as they can."""
    from edgerun.weights import StreamedExpertStore, StreamedLayerStore

    spec, kernels = decoder.spec, decoder.kernels
    waves = int(rng.choice([8, 32]))
    most = max(layer.n_experts_used for layer in spec.layers)
    if not most:
        yield "layer by layer", StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=waves)
        return
    slots = int(most + rng.integers(0, 4))
    store = StreamedExpertStore(gguf, spec, kernels, slots=slots, wave_tokens=waves)
    yield f"with {slots} experts in memory", store
