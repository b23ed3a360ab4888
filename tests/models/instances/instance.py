"""What a tiny instance of a family is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgerun.formats.gguf import GgmlType

VOCAB, LAYERS, TOKENS = 96, 3, 40


@dataclass(frozen=True, eq=False)
class Instance:
    """What `write` makes: a family, some metadata, a weight type."""

    name: str
    arch: str
    type: GgmlType = GgmlType.F32
    d: int = 64
    ff: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    layers: int = LAYERS
    experts: int = 0
    used: int = 0
    ff_expert: int = 0  # 0: ff
    ff_shared: int = 0
    window: int = 0
    tied: bool = False
    biases: tuple[str, ...] = ()
    more: tuple[str, ...] = ()  # tensors that a file may have and this one has
    fused: tuple[str, ...] = ()  # tensors that hold gate and up
    telling: dict[str, int] = field(default_factory=lambda: {"attn_v": 1})  # parts whose being there says something
    without: tuple[tuple[int, str], ...] = ()  # layers that lack one of these
    rope_factors: bool = False
    long_short: bool = False  # Phi-3's two sets of factors
    sparse: bool = False  # ReLU, down transposed
    taps: int = 0  # of the convolutions that layers without kv_heads are
    recurrent: tuple[bool, ...] = ()  # which layers are
    spare_kv: bool = False  # layers that read others' keys and values have matrices for them all the same
    further: bool = False  # one more layer, that guesses a token more
    by_layer: dict[str, tuple[int, ...]] = field(default_factory=dict)  # ff, heads, kv_heads: where layers differ
    means: dict[str, float] = field(default_factory=dict)  # of vectors, where not as usual
    metadata: dict[str, Any] = field(default_factory=dict)
    lies: dict[str, Any] = field(default_factory=dict)  # metadata of a file whose tensors are as they would be without
    unsaid: tuple[str, ...] = ()  # metadata that the file lacks; its tensors are as they would be with it
    mixed: tuple[GgmlType, ...] = ()  # of which a matrix has any, by its name, if its columns are whole blocks
    exact: bool = False  # what quantised matrices hold is written as F32
