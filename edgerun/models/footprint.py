"""What the decoder itself takes of memory while it computes."""

from __future__ import annotations

from edgerun.models.spec import ModelSpec

CHUNK = 256  # tokens of a prompt that pass attention and the dense products together
EXPERT_ROWS = 1024  # rows of intermediate results of experts at a time


def activation_bytes(spec: ModelSpec, wave_tokens: int) -> int:
    """What a wave of a prompt takes at most, with the quantised copies and attention's scratch."""
    d, heads, kv = spec.d_model, spec.n_heads, spec.n_kv_heads
    qkv = heads * spec.head_dim_k + kv * (spec.head_dim_k + spec.head_dim_v)
    ff = spec.d_ff_shared if spec.n_experts else spec.d_ff
    chunk = min(CHUNK, wave_tokens)
    chunk_floats = chunk * (4 * d + 2 * qkv + heads * spec.head_dim_v + 4 * ff)
    wave_floats = 2 * wave_tokens * d
    if spec.n_experts:
        rows = min(EXPERT_ROWS, wave_tokens * spec.n_experts_used)
        wave_floats += wave_tokens * (spec.n_experts_used * d + 3 * spec.n_experts + d)
        wave_floats += rows * (2 * spec.d_ff_expert + 3 * d)
    return int(1.15 * 4 * (chunk_floats + wave_floats)) + 8 * spec.vocab_size + (4 << 20)
