"""Which experts were hot in earlier runs of a model, kept between runs so that a start begins with them.

One small file per model in the cache directory, named by a digest of the model's header. It is written beside its place
and renamed, so that a crash leaves the old one:

    bytes 0 .. 8    "EDGEHOT1"
    8 .. 40         sha256 of the rest
    40 .. 48        layers, experts: u32 little-endian
    48 ..           scores, f32 little-endian, layer after layer
"""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path

import numpy as np

from edgerun.errors import FormatError
from edgerun.events import EventSink, ignore
from edgerun.kernels.interface import F32
from edgerun.paths import write_kept
from edgerun.weights.kept import parsed_kept

MAGIC = b"EDGEHOT1"
_SHAPE = struct.Struct("<2I")
_DATA_AT = len(MAGIC) + 32 + _SHAPE.size


def load_scores(path: Path, layers: int, experts: int, events: EventSink = ignore) -> F32 | None:
    """(layers, experts) f32, or None when there is no file. One that is damaged, or not a profile of such a model, is
    dropped with a Notice; one that others can have written is left alone, with a Notice."""
    return parsed_kept(
        path,
        lambda content: _scores(content, layers, experts),
        most_bytes=_DATA_AT + 4 * layers * experts,
        what="what was hot in earlier runs",
        events=events,
    )


def save_scores(path: Path, scores: F32) -> None:
    """Atomically. OSError when the folder cannot be written, or when others may write there."""
    rest = _SHAPE.pack(*scores.shape) + scores.astype("<f4").tobytes()
    write_kept(path, [MAGIC, sha256(rest).digest(), rest])


def _scores(content: bytes, layers: int, experts: int) -> F32:
    said, rest = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if not content.startswith(MAGIC) or said != sha256(rest).digest():
        raise FormatError("its checksum is wrong")
    if rest[: _SHAPE.size] != _SHAPE.pack(layers, experts) or len(content) != _DATA_AT + 4 * layers * experts:
        raise FormatError(f"it is not of {layers} layers of {experts}")
    scores = np.frombuffer(content, "<f4", offset=_DATA_AT).astype(np.float32).reshape(layers, experts)
    if not (np.isfinite(scores).all() and (scores >= 0).all()):
        raise FormatError("not all of it are scores")
    return scores
