"""Qwen 1.5 to 3.8, dense and with experts; Mellum 2, a Qwen 3 mixture with windows."""

from dataclasses import replace

from edgerun.models.families.family import RERANKER, Family

_DELTA = Family(
    rope="neox",
    qk_norm="head",
    output_gate="in_q",
    ffn_norm="post_attention_norm",
    recurrence="delta",
    tiled_heads=True,
)
FAMILIES = {
    "qwen2": Family(rope="neox", unused=RERANKER),
    "qwen2moe": Family(rope="neox", renormalise=False, shared_gate=True),
    "qwen3": Family(rope="neox", qk_norm="head", unused=RERANKER),
    "qwen3moe": Family(rope="neox", qk_norm="head"),
    "mellum": Family(
        rope="neox",
        qk_norm="head",
        window_pattern=4,
        default_window=0,
        local_rope_plain=True,
        plain_local_factor=True,
    ),
    "qwen2vl": Family(rope="neox", sections="blocks"),  # of these the part that reads and writes text
    "qwen3vl": Family(rope="neox", qk_norm="head", sections="interleaved"),
    "qwen3vlmoe": Family(rope="neox", qk_norm="head", sections="interleaved"),
    "qwen35": replace(_DELTA, sections="interleaved"),
    "qwen35moe": replace(_DELTA, shared_gate=True, sections="interleaved"),
    "qwen3next": replace(_DELTA, shared_gate=True, tiled_heads=False),
}
