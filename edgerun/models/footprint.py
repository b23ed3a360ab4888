"""What the decoder itself takes of memory while it computes."""

from __future__ import annotations

from edgerun.models.chunks import CHUNK
from edgerun.models.plan import plan_of
from edgerun.models.spec import ModelSpec


def activation_bytes(spec: ModelSpec, wave_tokens: int) -> int:
    """What a wave of a prompt takes at most, with the quantised copies and attention's scratch."""
    d, plan = spec.d_model, plan_of(spec)
    blocks = max(layer.mixer.floats for layer in plan) + max(layer.feed_forward.floats for layer in plan)
    streams = max((layer.streams.floats for layer in plan if layer.streams is not None), default=0)
    chunk_floats = min(CHUNK, wave_tokens) * (4 * d + blocks + streams)
    experts = (layer.mixture.wave_floats(wave_tokens) for layer in plan if layer.mixture is not None)
    fed = spec.n_layers * spec.per_layer_width
    chunk_floats += 3 * min(CHUNK, wave_tokens) * fed
    wave_floats = wave_tokens * (2 * spec.width + fed) + max(experts, default=0)
    return int(1.15 * 4 * (chunk_floats + wave_floats)) + 8 * spec.vocab_size + (4 << 20)
