"""Models that stream, and what their resident twins say."""

from __future__ import annotations

from contextlib import closing, contextmanager

import numpy as np

from edgerun.models import Decoder
from edgerun.weights import StreamedExpertStore, StreamedLayerStore
from tests.models.instances import INSTANCES, SPARSE, tokens_of

SPARSE_MODELS = [instance.name for instance in SPARSE]
PROMPT = 25  # tokens of a prompt; the rest one by one


def run(decoder, name):
    """Logits of the prompt and of every token after it."""
    tokens = tokens_of(INSTANCES[name])
    cache = decoder.new_cache(128)
    rows = [decoder.forward(tokens[:PROMPT], cache, logits="all")]
    rows += [decoder.forward([token], cache) for token in tokens[PROMPT:]]
    return np.concatenate(rows)


@contextmanager
def streamed(models, name, kernels, **options):
    """A decoder over a streaming store."""
    gguf, spec, expected = models(name)
    kind = StreamedExpertStore if INSTANCES[name].experts else StreamedLayerStore
    with closing(kind(gguf, spec, kernels, **options)) as store:
        yield Decoder(spec, store, kernels), store, expected


def tight(name):
    """Options of a store with little room."""
    if INSTANCES[name].experts:
        return {"slots": 6, "predict": False}
    return {"pinned": [], "neuron_slots": 20 if name in SPARSE_MODELS else 0}


def check_whole(store):
    """Nothing is lost, leased or stuck, and nobody who reads has gone."""
    assert all(thread.is_alive() for thread in store.flash._threads)
    if isinstance(store, StreamedExpertStore):
        store.begin()
        store.cache.check()


def patience(polls=1000):
    """For what would wait for ever: cancels after five seconds."""
    answers = iter([False] * polls + [True])
    return lambda: next(answers)
