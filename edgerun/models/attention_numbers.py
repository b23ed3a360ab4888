"""Each layer's attention as the metadata and the names of tensors say: heads, windows, what is rotated, how it lies."""

from __future__ import annotations

import numpy as np

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufFile
from edgerun.models.families import Family
from edgerun.models.numbers import Numbers
from edgerun.models.rotations import rotations_of
from edgerun.models.spec import LayerNumbers, Temperature


def attention_layers(gguf: GgufFile, n: Numbers, family: Family, count: int) -> list[LayerNumbers]:
    """The numbers of so many layers, as far as attention goes. FormatError for impossible ones."""
    d_model = n.integer("embedding_length")
    heads = n.by_layer("attention.head_count", count)
    if n.integer("attention.key_length", 0, 1) == 0 and d_model % heads[0]:
        raise FormatError(f"{d_model} dimensions cannot be divided among {heads[0]} heads")
    may_lack = family.short_convolutions or family.recurrence == "mamba"
    delta = family.recurrence == "delta"
    kv_heads = n.by_layer("attention.head_count_kv", count, heads, 0 if may_lack or delta else 1)
    if delta:  # Ollama's converter writes 0 of the layers that have none
        if not any(kv_heads):
            raise FormatError(f"{n.name('attention.head_count_kv')} is 0 of all layers")
        kv_heads = [shared or max(kv_heads) for shared in kv_heads]
    taps = n.integer("shortconv.l_cache", None, 2) if family.short_convolutions else 0
    windows = _windows(n, family, count)
    dims = _head_dims(n, d_model // heads[0])
    rotations = rotations_of(n, family, dims[0][0], dims[1][0])
    rotated = _rotated(n, family, windows)
    sources = _sources(n, family, windows)
    temperature = _temperature(n, family)
    normed = not family.qk_norm_not_of or n.integer("expert_count", 0, 0) != family.qk_norm_not_of
    found = []
    for layer, (mine, shared) in enumerate(zip(heads, kv_heads, strict=True)):
        if shared and mine % shared:
            raise FormatError(f"{mine} heads cannot share {shared} key/value heads")
        local = windows[layer] > 0
        rotation = rotations[local] if rotated[layer] else None
        warm = temperature is not None and (family.temperature != "unrotated" or rotation is None)
        if warm and rotation is not None and rotation.dim != dims[local][0]:
            raise UnsupportedError(f"a temperature of queries of which only {rotation.dim} dimensions are rotated")
        names = {
            part
            for part in ("attn_qkv", "attn_v", "attn_gate", "attn_q_norm")
            if f"blk.{layer}.{part}.weight" in gguf.tensors
        }
        numbers = LayerNumbers(
            n_heads=mine,
            n_kv_heads=shared,
            head_dim_k=dims[local][0],
            head_dim_v=dims[local][1],
            d_ff=0,
            rotation=rotation,
            window=windows[layer],
            chunked=local and family.chunks > 0,
            packed_qkv="attn_qkv" in names,
            v_from_k=family.v_from_k and not names & {"attn_qkv", "attn_v"},
            gate_per_head="attn_gate" in names and gguf.tensors[f"blk.{layer}.attn_gate.weight"].shape[0] == mine,
            qk_normed=normed and (not family.qk_norm_by_file or "attn_q_norm" in names),
            temperature=temperature if warm else None,
            kv_source=sources[layer],
            conv_taps=0 if shared else taps,
            conv_cols=0 if shared or not taps else d_model,
        )
        found.append(numbers)
    return found


def _head_dims(n: Numbers, default: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Dimensions of keys and of values, of layers that see all and of those with a window."""
    k, v = n.integer("attention.key_length", default), n.integer("attention.value_length", default)
    return (k, v), (n.integer("attention.key_length_swa", k), n.integer("attention.value_length_swa", v))


def _windows(n: Numbers, family: Family, layers: int) -> list[int]:
    """How many positions each layer sees, 0 for all: by the file, as one truth a layer or as n (of every n layers all
    but one have a window), or by the family. Where the family has no windows, all see all."""
    if family.window_everywhere:
        return [n.integer("attention.sliding_window", 0, 0)] * layers
    if not family.window_pattern or family.windows_of_layers not in (0, layers):
        return [0] * layers
    said = n.integer("attention.sliding_window", -1, 0)
    window = family.chunks if family.chunks and said else family.default_window if said < 0 else said
    if family.fixed_window and window:
        window = family.fixed_window
    if window < 0:
        raise FormatError(f"the file lacks {n.name('attention.sliding_window')}")
    key = "attention.sliding_window_pattern"
    value = n.raw(key)
    if isinstance(value, np.ndarray):
        windowed = n.truths(key, layers)
    else:
        every = n.integer(key, family.window_pattern, 0)
        sees_all = 0 if family.window_after else every - 1
        windowed = [not every or layer % every != sees_all for layer in range(layers)]
    if any(windowed) and not window and family.default_window:
        raise FormatError(f"{n.name('attention.sliding_window')} is 0: layers with a window would see nothing")
    return [window if each else 0 for each in windowed]


def _rotated(n: Numbers, family: Family, windows: list[int]) -> list[bool]:
    """Which layers tell positions apart by rotation."""
    layers = len(windows)
    if family.rotated == "listed":
        return n.truths("attention.rope_pattern", layers, True)
    if family.rotated == "said":
        return [n.truth("rope.scaling.finetuned", True)] * layers
    if family.rotated == "three_of_four":
        return [(layer + 1) % 4 != 0 for layer in range(layers)]
    if family.rotated == "fourths" and n.integer("attention.sliding_window", family.chunks, 0):
        return [layer % 4 != (0 if family.window_after else 3) for layer in range(layers)]
    if family.rotated == "windowed" and any(windows):
        return [window > 0 for window in windows]
    return [family.rotated != "none"] * layers


def _sources(n: Numbers, family: Family, windows: list[int]) -> list[int | None]:
    """Of the last layers that keep nothing: which layer's keys and values they read, the last of their kind."""
    layers = len(windows)
    usual = max(0, layers - family.own_kv) if family.own_kv else 0
    shared = n.integer("attention.shared_kv_layers", usual, 0) if family.shares_kv else 0
    if shared and shared > layers - 2:
        raise FormatError(f"{n.name('attention.shared_kv_layers')} is {shared} of {layers} layers")
    own = windows[: layers - shared]
    if shared and {each > 0 for each in own[-2:]} != {True, False}:
        raise UnsupportedError("of the last two layers with keys and values of their own one must have a window")
    last = {window > 0: layer for layer, window in enumerate(own)}
    return [None if layer < len(own) else last[window > 0] for layer, window in enumerate(windows)]


def _temperature(n: Numbers, family: Family) -> Temperature | None:
    """What the queries of late positions are multiplied by."""
    if family.temperature == "none":
        return None
    if family.temperature == "unrotated":
        return Temperature(0.1, family.chunks, 1) if n.integer("attention.sliding_window", 1, 0) else None
    scale = n.real("attention.temperature_scale", 0.0)
    if not scale:
        return None
    length = n.integer("rope.scaling.original_context_length", n.integer("context_length", 4096))
    return Temperature(scale, length)
