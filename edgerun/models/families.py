"""The families, declared: what differs between architectures, and nothing else.

Names are GGUF's `general.architecture`. To add one: a declaration here, and a row in tests/models/instances.py.
Optional tensors (biases, scales, `rope_freqs`) are used wherever a file has them and need no declaration;
tensors that are of no use to text are declared in `unused`, and a file with any others is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgerun.errors import UnsupportedError
from edgerun.kernels.interface import Activation, RopeKind
from edgerun.kernels.routing import RouterKind


@dataclass(frozen=True)
class Family:
    """What the one decoder must know beyond the numbers in the file."""

    rope: RopeKind
    activation: Activation = "silu"
    qk_norm: Literal["none", "head", "full"] = "none"  # RMSNorm of q and k: each head, or all heads together
    fused_qkv: bool = False  # one matrix attn_qkv
    fused_gate_up: bool = False  # ffn_up holds gate, then up
    post_norms: bool = False  # a norm after attention and after the feed-forward, before the residual
    sub_norms: bool = False  # a norm before attn_output and before ffn_down
    scaled_embedding: bool = False  # times sqrt(d_model)
    router: RouterKind = "softmax"
    renormalise: bool = True  # the chosen experts' weights sum to one
    early_router: bool = False  # the router reads a layer's input before its attention: experts are known early
    window_pattern: int = 0  # n: of every n layers all but the last see only the sliding window; 0: none does
    window_after: bool = False  # of every n layers all but the first
    window_optional: bool = False  # a file may have no window
    rope_in_window: bool = False  # layers that see everything are not rotated
    local_rope_base: float = 0.0  # base of the layers with a window, unscaled; 0: as the others
    wide_scale_layers: int = 0  # a model of so many layers scales scores by d_model / heads, not head_dim
    unused: Mapping[str, str] = field(default_factory=dict, hash=False)  # pattern of names -> what these tensors are


_EVERYWHERE = {  # what converters add to files of any family
    r"blk\.(0|[1-9][0-9]*)\.[a-z0-9_]+\.input_scale": "scales of activations for 4- and 8-bit float units",
}
_RERANKER = {r"cls(\.output)?\.(weight|bias)": "the head with which a reranker scores texts"}
_VISION = {r"(v|mm)\.[a-z0-9_.]+": "the part of the model that sees images"}  # in the same file by some converters


def unused_tensors(family: Family) -> dict[str, str]:
    """Patterns of names that a file may have and text does not need -> what they are, for people."""
    return {**_EVERYWHERE, **family.unused}


FAMILIES: dict[str, Family] = {
    "llama": Family(rope="norm"),  # Llama 1-3, Mistral, Mixtral, TinyLlama, SmolLM2
    "qwen2": Family(rope="neox", unused=_RERANKER),
    "qwen2moe": Family(rope="neox", renormalise=False),
    "qwen3": Family(rope="neox", qk_norm="head", unused=_RERANKER),
    "qwen3moe": Family(rope="neox", qk_norm="head"),
    "olmoe": Family(rope="neox", qk_norm="full", renormalise=False),
    "phi3": Family(rope="neox", fused_qkv=True, fused_gate_up=True),
    "gemma2": Family(
        rope="neox",
        activation="gelu",
        post_norms=True,
        scaled_embedding=True,
        window_pattern=2,
        wide_scale_layers=46,
    ),
    "gemma3": Family(
        rope="neox",
        activation="gelu",
        qk_norm="head",
        post_norms=True,
        scaled_embedding=True,
        window_pattern=6,
        local_rope_base=10000.0,
        wide_scale_layers=62,
        unused=_VISION,
    ),
    "smallthinker": Family(
        rope="neox",
        activation="relu",
        early_router=True,
        window_pattern=4,
        window_after=True,
        window_optional=True,
        rope_in_window=True,
    ),
    "bitnet": Family(rope="neox", sub_norms=True),
}


def family_of(architecture: str) -> Family:
    """Raises UnsupportedError naming the known ones."""
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedError(f"the architecture {architecture!r} is not supported; edgerun runs {known}")
    return FAMILIES[architecture]
