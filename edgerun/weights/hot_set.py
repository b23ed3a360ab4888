"""Which experts were hot in earlier runs of a model, kept between runs so that a start begins with them.

One small file per model in the cache directory, named by a digest of the model's header: numbers only, checked when
read, written beside its place and renamed, so that a crash leaves the old one.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.paths import replace_file


def load_scores(path: Path, layers: int, experts: int) -> F32 | None:
    """(layers, experts) f32, or None when there is no file or it is not a profile of such a model."""
    try:
        with np.load(path, allow_pickle=False) as file:
            scores = np.asarray(file["scores"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # only a start without warmth
    fits = scores.dtype == np.float32 and scores.shape == (layers, experts)
    return scores if fits and bool(np.isfinite(scores).all() and (scores >= 0).all()) else None


def save_scores(path: Path, scores: F32) -> None:
    """Atomically. OSError when the folder cannot be written."""
    content = io.BytesIO()
    np.savez(content, scores=scores.astype(np.float32))
    replace_file(path, [content.getvalue()])
