"""From how many rows of a prompt on an expert is worth a run of its graph: measured against our kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgerun.errors import UnsupportedError
from edgerun.kernels.interface import F32
from edgerun.models import Decoder
from edgerun.prefill.ladder import graph_chunks, padded
from edgerun.prefill.layer_files import GraphFile
from edgerun.prefill.segments import EXPERT
from edgerun.prefill.sessions import ExpertJob, Sessions

TRIED = (8, 16, 32, 64, 128)
_TURNS = 5


def least_expert_rows(decoder: Decoder, sessions: Sessions, layer: int, sizes: Sequence[int], threads: int) -> int:
    """The least of `TRIED` from which on the device is faster. UnsupportedError when it never is."""
    spec, kernels = decoder.spec, decoder.kernels
    ids = np.arange(min(threads, spec.n_experts), dtype=np.int32)  # as many as a CPU runs at once
    least = 0
    with decoder.store.experts(layer, ids) as batches:
        (experts,) = batches  # of a model that is resident: others have no room for a device's copy
        for rows in reversed(TRIED):
            x = np.random.default_rng(0).standard_normal((rows, spec.d_model)).astype(np.float32)
            every = np.arange(rows, dtype=np.int32)
            slots = [every + rows * i for i in range(len(ids))]
            parts = np.empty((rows * len(ids), spec.d_model), np.float32)
            ((_, size),) = graph_chunks(rows, sizes)
            jobs: list[ExpertJob] = [
                (GraphFile(layer, EXPERT, size, int(expert)), partial(padded, x, size), _drop) for expert in ids
            ]
            form = kernels.activations(x)
            here = partial(kernels.experts_ffn, experts, form, [every] * len(ids), slots, spec.activation, parts)
            if _best_s(partial(sessions.run_experts, jobs)) > _best_s(here):
                break
            least = rows
    if not least:
        raise UnsupportedError(f"experts of up to {max(TRIED)} rows are faster on the kernels")
    return least


def _drop(result: F32) -> None:
    """Only its time counts."""


def _best_s(run: Callable[[], None]) -> float:
    """Of a few runs after a first one."""
    run()
    best = math.inf
    for _ in range(_TURNS):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best
