"""From a choice to a backend that a decoder can use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgerun.events import EventSink, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.models import Decoder
from edgerun.paths import read_kept, write_kept
from edgerun.prefill.backend import OnnxBackend
from edgerun.prefill.build import BuiltModel, build_model, parse_ranges
from edgerun.prefill.choice import PromptChoice
from edgerun.prefill.ladder import LADDER
from edgerun.prefill.profile import MOST_TOKENS, profile_ranges
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.segments import check_supported
from edgerun.prefill.sessions import Sessions
from edgerun.weights.identity import content_digest

_RANGES_VERSION = 2  # those of 1 that were found while a model was streamed are wrong
TEXT = Path(__file__).parent / "calibration.txt"


def open_backend(
    gguf: GgufFile,
    decoder: Decoder,
    choice: PromptChoice,
    ids: Sequence[int],
    root: Path,
    *,
    threads: int,
    keep_layers: int = 0,
    overlap: bool = True,
    events: EventSink = ignore,
) -> OnnxBackend:
    """Build what is missing under `root` and open all sessions. `ids`: a text that ranges are found on; `keep_layers`:
    of how many layers sessions stay open (0: all); `overlap`: device and CPU work at once. Raises UnsupportedError when
    the model or the device refuses."""
    built = build(gguf, decoder, choice, ids, root, events=events)
    sessions = Sessions(built, choice.device, threads=threads, keep_layers=keep_layers)
    try:
        sessions.open_all(decoder.spec, events)
    except BaseException:
        sessions.close()
        raise
    return OnnxBackend(decoder.spec, built, sessions, overlap=overlap)


def build(
    gguf: GgufFile,
    decoder: Decoder,
    choice: PromptChoice,
    ids: Sequence[int],
    root: Path,
    *,
    sizes: Sequence[int] = LADDER,
    events: EventSink = ignore,
) -> BuiltModel:
    """The model's folder for a choice: graphs of the ladder, or of any size where the device takes them."""
    check_supported(decoder.spec, experts=choice.experts)
    ranges = [LayerRanges()] * decoder.spec.n_layers
    if choice.scheme.quantises_activations:
        ranges = _ranges(gguf, decoder, choice, ids, root, events)
    return build_model(
        root,
        gguf,
        decoder.spec,
        choice.scheme,
        ranges,
        sizes if choice.device.kind.static else (0,),
        rotated=choice.rotated,
        experts=choice.experts,
        events=events,
    )


def calibration_ids(vocab_size: int, encode: Callable[[str], Sequence[int]] | None) -> list[int]:
    """Of our own text, or of chance for a model without a vocabulary."""
    if encode is not None:
        return list(encode(TEXT.read_text(encoding="utf-8")))[:MOST_TOKENS]
    return [int(i) for i in np.random.default_rng(0).integers(0, vocab_size, MOST_TOKENS // 2)]


def _ranges(
    gguf: GgufFile, decoder: Decoder, choice: PromptChoice, ids: Sequence[int], root: Path, events: EventSink
) -> list[LayerRanges]:
    """Found out once for a model, a text and those who compute it, and kept."""
    depends = [
        _RANGES_VERSION,
        content_digest(gguf, root, events),
        list(ids[:MOST_TOKENS]),
        choice.shadow,
        choice.rotated,
        choice.experts,
        decoder.kernels.name,  # others may round the last bits otherwise
        decoder.store.mode,
    ]
    path = root / f"ranges-{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24]}.json"
    try:
        kept = [parse_ranges(each) for each in json.loads(read_kept(path))]
        if len(kept) == decoder.spec.n_layers:
            return kept
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, or damaged: found out anew
    ranges = profile_ranges(decoder, ids, shadow=choice.shadow, rotated=choice.rotated, experts=choice.experts)
    write_kept(path, [json.dumps([asdict(each) for each in ranges]).encode()])
    return ranges
