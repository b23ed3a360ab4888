"""How files are damaged: bytes, JSON, and GGUF by its parts. Everything follows from the `Random` given."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from tools.fuzzing.gguf_parts import ARRAY, STRING, Parts, Tensor, Value, put_together, take_apart

_HUGE = (0, 1, 2, 3, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 62, (1 << 64) - 1)
_FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"), 0.5, 1.0, 2.0)
_TEXTS = (b"", b"\xff\xfe", b"none", b"llama", b"gpt2", b"yarn", b"linear", b"longrope", b"relu", b"a" * 3000, b"\0")
_CONTROLS = {  # keys where hostile numbers do most, and values that pass a first look
    b"rope.scaling.type": (STRING, (b"yarn", b"linear", b"longrope", b"none", b"x")),
    b"rope.scaling.factor": (6, _FLOATS),
    b"rope.scaling.attn_factor": (6, _FLOATS),
    b"rope.scaling.yarn_beta_fast": (6, _FLOATS),
    b"rope.scaling.yarn_beta_slow": (6, _FLOATS),
    b"rope.scaling.original_context_length": (4, _HUGE),
    b"rope.freq_base": (6, (*_FLOATS, 1.0000001)),
    b"rope.dimension_count": (4, (0, 1, 2, 4, 8, 16, 32, 1 << 31)),
    b"attention.layer_norm_rms_epsilon": (6, _FLOATS),
    b"attention.sliding_window": (4, _HUGE),
    b"attn_logit_softcapping": (6, _FLOATS),
    b"final_logit_softcapping": (6, _FLOATS),
    b"expert_weights_scale": (6, _FLOATS),
    b"expert_gating_func": (4, (0, 1, 2, 3, 4, 1 << 31)),
    b"expert_used_count": (4, (0, 1, 2, 4, 8, 1 << 31)),
    b"context_length": (4, _HUGE),
    b"hidden_activation": (STRING, (b"relu", b"relu2", b"gelu", b"silu", b"")),
    b"block_count": (4, (0, 1, 2, 3, 4, 7, 1 << 31)),
    b"nextn_predict_layers": (4, (0, 1, 2, 1 << 31)),
}


def damage_bytes(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Flips, cuts, insertions, numbers written over, pieces of another file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        head = min(len(changed), 1 << rng.randrange(5, 14))  # most of what can go wrong stands in front
        at = rng.randrange(head if rng.random() < 0.8 else len(changed))
        match rng.randrange(8):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice((0, 1, 8, 9, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + rng.choice((1, 2, 4, 8, 16, 1000))]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 32)))
            case 4:
                changed[at : at + 8] = struct.pack("<Q", rng.choice(_HUGE))
            case 5:
                changed[at : at + 4] = struct.pack("<I", rng.choice(_HUGE) & 0xFFFFFFFF)
            case 6:
                del changed[rng.randrange(len(changed)) :]
            case _:
                start = rng.randrange(len(other)) if other else 0
                changed[at : at + 64] = other[start : start + rng.choice((8, 64, 512))]
    return bytes(changed)


# -- GGUF -----------------------------------------------------------------------------------------------------------


def damage_gguf(data: bytes, rng: Random, other: bytes) -> tuple[bytes, bool]:
    """The damaged file, and whether it means the same as before."""
    if rng.random() < 0.15:
        return damage_bytes(data, rng, other), False
    parts = take_apart(data)
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 2, 3))):
            rng.choice(_HARMLESS)(parts, rng)
        return put_together(parts), True
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_HARMFUL)(parts, rng, other)
    made = put_together(parts)
    return (damage_bytes(made, rng, other) if rng.random() < 0.05 else made), False


def _architecture(parts: Parts) -> bytes:
    found = [value.data for key, value in parts.metadata if key == b"general.architecture"]
    return found[0] if found and isinstance(found[0], bytes) else b"llama"


def _any_value(rng: Random, kind: int | None = None) -> Value:
    """Of some kind, or an array of it."""
    kind = rng.choice((0, 1, 4, 5, 6, 7, STRING, 10, 11, 12)) if kind is None else kind
    numbers = _FLOATS if kind in (6, 12) else _HUGE

    def one() -> Any:
        return rng.choice(_TEXTS) if kind == STRING else rng.choice(numbers) * rng.choice((1, 1, -1))

    if rng.random() < 0.35:
        return Value(ARRAY, [one() for _ in range(rng.choice((0, 1, 2, 7, 96, 300)))], kind)
    return Value(kind, one())


def _change_value(parts: Parts, rng: Random, other: bytes) -> None:
    i = rng.randrange(len(parts.metadata))
    key, value = parts.metadata[i]
    kind = value.kind if value.kind not in (ARRAY,) and rng.random() < 0.5 else None
    parts.metadata[i] = (key, _any_value(rng, kind))


def _set_control(parts: Parts, rng: Random, other: bytes) -> None:
    for name in rng.sample(sorted(_CONTROLS), rng.choice((1, 2, 4))):
        kind, values = _CONTROLS[name]
        key = _architecture(parts) + b"." + name
        value = Value(kind, rng.choice(values)) if rng.random() < 0.9 else _any_value(rng)
        parts.metadata = [pair for pair in parts.metadata if pair[0] != key] + [(key, value)]


def _change_item(parts: Parts, rng: Random, other: bytes) -> None:
    """In an array: of the vocabulary, mostly."""
    arrays = [value for _, value in parts.metadata if value.kind == ARRAY and value.data]
    if not arrays:
        return _change_value(parts, rng, other)
    value = rng.choice(arrays)
    items = value.data = list(value.data)
    at = rng.randrange(len(items))
    match rng.randrange(5):
        case 0:
            items[at] = rng.choice(_TEXTS) if value.item == STRING else rng.choice((*_HUGE, *_FLOATS, -1))
        case 1:
            del items[at:]
        case 2:
            items[at] = items[rng.randrange(len(items))]
        case 3:
            items *= rng.choice((2, 2, 400))  # 100,000 tokens and more
            del items[300_000:]
        case _:
            items[at], items[-1] = items[-1], items[at]
    return None


def _mistype_array(parts: Parts, rng: Random, other: bytes) -> None:
    """Strings where numbers are read, numbers where strings are, as many as there were."""
    i = rng.randrange(len(parts.metadata))
    key, value = parts.metadata[i]
    count = len(value.data) if value.kind == ARRAY else 1
    item = rng.choice((0, 5, 6, 7, STRING, 12))
    if item == STRING:
        data: list[Any] = [rng.choice(_TEXTS + (b"1", b"1.5")) for _ in range(count)]
    else:
        data = [rng.choice(_FLOATS if item in (6, 12) else (0, 1, 3, 127)) for _ in range(count)]
    parts.metadata[i] = (key, Value(ARRAY, data, item))


def _drop_value(parts: Parts, rng: Random, other: bytes) -> None:
    parts.metadata.pop(rng.randrange(len(parts.metadata)))


def _twice(parts: Parts, rng: Random, other: bytes) -> None:
    if rng.random() < 0.5:
        parts.metadata.append(rng.choice(parts.metadata))
    elif parts.tensors:
        tensor = rng.choice(parts.tensors)
        parts.tensors.append(Tensor(tensor.name, list(tensor.dims), tensor.type, tensor.data))


def _lie(parts: Parts, rng: Random, other: bytes) -> None:
    match rng.randrange(3):
        case 0:
            parts.n_keys = rng.choice((*_HUGE, len(parts.metadata) - 1, len(parts.metadata) + 1))
        case 1:
            parts.n_tensors = rng.choice((*_HUGE, len(parts.tensors) - 1, len(parts.tensors) + 1))
        case _:
            parts.long_strings[rng.randrange(len(parts.metadata))] = rng.choice(_HUGE)


def _some_tensor(parts: Parts, rng: Random) -> Tensor:
    return rng.choice(parts.tensors or [Tensor(b"x.weight", [32], 0, bytes(128))])


def _change_shape(parts: Parts, rng: Random, other: bytes) -> None:
    tensor = _some_tensor(parts, rng)
    i = rng.randrange(len(tensor.dims))
    match rng.randrange(5):
        case 0:
            tensor.dims[i] = rng.choice(_HUGE)
        case 1:
            tensor.dims[i] //= 2
        case 2:
            tensor.dims.reverse()
        case 3:
            tensor.dims.append(rng.choice((1, 1, 2)))
        case _:
            tensor.dims = [tensor.dims[0] * (tensor.dims[1] if len(tensor.dims) > 1 else 1)]


def _change_type(parts: Parts, rng: Random, other: bytes) -> None:
    """With as many bytes as the type needs, or with those that are there."""
    sizes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 8: (32, 34), 10: (256, 84), 12: (256, 144)}
    sizes |= {14: (256, 210), 20: (32, 18), 24: (1, 1), 26: (1, 4), 28: (1, 8), 30: (1, 2), 34: (256, 54), 39: (32, 17)}
    tensor = _some_tensor(parts, rng)
    tensor.type = rng.choice((*sizes, 4, 16, 31, 99, 1 << 31))
    if tensor.type in sizes and rng.random() < 0.8:
        cols, n_bytes = sizes[tensor.type]
        total = n_bytes * -(-int(np.prod([min(dim, 4096) for dim in tensor.dims])) // cols)
        tensor.data = rng.randbytes(min(total, 1 << 20))


def _change_offset(parts: Parts, rng: Random, other: bytes) -> None:
    tensor, second = _some_tensor(parts, rng), _some_tensor(parts, rng)
    at, places = 0, {}
    for each in parts.tensors:
        places[id(each)] = at
        at += -(-len(each.data) // 32) * 32 + parts.gap
    match rng.randrange(4):
        case 0:
            tensor.offset, second.offset = places.get(id(second), 0), places.get(id(tensor), 0)
        case 1:
            tensor.offset = places.get(id(second), 0)
        case 2:
            tensor.offset = rng.choice(_HUGE) // 32 * 32
        case _:
            tensor.offset = rng.choice(_HUGE)


def _change_weights(parts: Parts, rng: Random, other: bytes) -> None:
    tensor = _some_tensor(parts, rng)
    size = len(tensor.data)
    match rng.randrange(5):
        case 0:
            tensor.data = b"\xff" * size  # NaN in every float type
        case 1:
            tensor.data = struct.pack("<f", rng.choice(_FLOATS)) * (size // 4)
        case 2:
            tensor.data = rng.randbytes(size)
        case 3:
            tensor.data = bytes(size)
        case _:
            tensor.data = tensor.data[: rng.randrange(size + 1)]


def _rename_tensor(parts: Parts, rng: Random, other: bytes) -> None:
    tensor = _some_tensor(parts, rng)
    tensor.name = _other_name(tensor.name, rng)


def _add_alias(parts: Parts, rng: Random, other: bytes) -> None:
    """The same tensor by another name, or something smaller."""
    tensor = _some_tensor(parts, rng)
    dims = list(tensor.dims) if rng.random() < 0.5 else [max(1, dim // 2) // 32 * 32 or 32 for dim in tensor.dims]
    alias = Tensor(_other_name(tensor.name, rng), dims, tensor.type, tensor.data)
    parts.tensors.insert(rng.randrange(len(parts.tensors) + 1), alias)


def _other_name(name: bytes, rng: Random) -> bytes:
    match rng.randrange(8):
        case 0:
            return name.removesuffix(b".weight")
        case 1:
            return name.replace(b"blk.", b"blk.0", 1)
        case 2:
            return name.replace(b".weight", b".bias")
        case 3:
            return name.replace(b".weight", b".scale")
        case 4:
            return name.replace(b"blk.0", b"blk.9", 1)
        case 5:
            return name.replace(b"ffn_up", b"ffn_down_t")
        case 6:
            return name.upper()
        case _:
            return rng.choice(
                (b"output.bias", b"rope_freqs.weight", b"rope_factors_long.weight", b"", b"\xff", b"a" * 99)
            )


def _drop_tensor(parts: Parts, rng: Random, other: bytes) -> None:
    if parts.tensors:
        parts.tensors.pop(rng.randrange(len(parts.tensors)))


def _splice(parts: Parts, rng: Random, other: bytes) -> None:
    """Metadata or tensors of another model."""
    theirs = take_apart(other)
    if rng.random() < 0.5:
        key, value = rng.choice(theirs.metadata)
        key = key.replace(_architecture(theirs), _architecture(parts))
        parts.metadata = [pair for pair in parts.metadata if pair[0] != key] + [(key, value)]
    elif theirs.tensors and parts.tensors:
        tensor = rng.choice(theirs.tensors)
        parts.tensors = [each for each in parts.tensors if each.name != tensor.name] + [tensor]


def _swap_architecture(parts: Parts, rng: Random, other: bytes) -> None:
    """The file, said to be of another family."""
    mine, name = _architecture(parts), _architecture(take_apart(other))
    parts.metadata = [(key.replace(mine + b".", name + b"."), value) for key, value in parts.metadata]
    for key, value in parts.metadata:
        if key == b"general.architecture":
            value.kind, value.data = STRING, name


_HARMFUL: tuple[Callable[[Parts, Random, bytes], None], ...] = (
    _change_value, _change_value, _set_control, _set_control, _set_control, _change_item, _change_item, _mistype_array,
    _mistype_array, _drop_value, _twice, _lie, _change_shape, _change_shape, _change_type, _change_offset,
    _change_weights, _change_weights, _rename_tensor, _add_alias, _add_alias, _drop_tensor, _splice, _swap_architecture,
)  # fmt: skip


def _shuffle_metadata(parts: Parts, rng: Random) -> None:
    rng.shuffle(parts.metadata)


def _shuffle_tensors(parts: Parts, rng: Random) -> None:
    rng.shuffle(parts.tensors)


def _leave_gaps(parts: Parts, rng: Random) -> None:
    parts.gap = rng.choice((32, 64, 4096))


def _older(parts: Parts, rng: Random) -> None:
    parts.version = 2


def _strange_key(parts: Parts, rng: Random) -> None:
    key = b"fuzz.%d" % rng.randrange(1 << 30)
    value = _any_value(rng, rng.choice((0, 5, 6, STRING, 11, 12)))
    parts.metadata.insert(rng.randrange(len(parts.metadata) + 1), (key, value))


def _unused_tensor(parts: Parts, rng: Random) -> None:
    name = b"blk.0.attn_output.input_scale"
    if all(each.name != name for each in parts.tensors):
        parts.tensors.insert(rng.randrange(len(parts.tensors) + 1), Tensor(name, [1], 0, rng.randbytes(4)))


_HARMLESS: tuple[Callable[[Parts, Random], None], ...] = (
    _shuffle_metadata, _shuffle_tensors, _leave_gaps, _older, _strange_key, _unused_tensor,
)  # fmt: skip


# -- checkpoints ----------------------------------------------------------------------------------------------------

_JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 1 << 31, 1 << 63, 10**30, 10**400, 0.5, -0.0, 1e-30, 1e308, "", "x",
    "1", "\ud800", "a" * 5000, "Ġ", [], {}, [1], ["a"], [[]], {"type": "x"}, {"id": 0}, [None], [1, "a", {}],
    float("nan"), float("inf"), "ByteLevel", "Split", "Sequence", "BPE", "yarn", "llama3", "longrope", "relu", "silu",
)  # fmt: skip


def damage_json(data: bytes, rng: Random, other: bytes) -> bytes:
    """Values, keys and lists changed; or the bytes."""
    if rng.random() < 0.15:
        return damage_bytes(data, rng, other)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _damage_node(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.03:
        depth = rng.choice((100, 5000, 100_000))
        text = (
            text.replace("null", "[" * depth + "]" * depth, 1) if "null" in text else "[" * depth + text + "]" * depth
        )
    if rng.random() < 0.03:
        text = text.replace("{", '{"model": 1, "model": 2, ', 1)
    return text.encode()


def _damage_node(value: Any, rng: Random) -> None:
    """Somewhere in the tree, near the root more often."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not places:
            return
        place = rng.choice(places)
        inner = value[place]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.75:
            value = inner
            continue
        match rng.randrange(6):
            case 0:
                del value[place]
            case 1 if isinstance(value, dict):
                value[rng.choice(("", "x", "type", "model", "vocab", "merges", str(place) + "2"))] = value.pop(place)
            case 2 if isinstance(value, list):
                value.extend(value[: rng.choice((1, 3, 500))])
            case 3 if isinstance(inner, (int, float)) and not isinstance(inner, bool):
                value[place] = rng.choice((inner + 1, inner - 1, inner * 2, -inner, inner // 2, inner * 1000))
            case _:
                value[place] = copy.deepcopy(rng.choice(_JSON_VALUES))
        return


def damage_safetensors(data: bytes, rng: Random, other: bytes) -> bytes:
    """The header as JSON, its length, or the bytes."""
    if rng.random() < 0.2:
        return damage_bytes(data, rng, other)
    length = int.from_bytes(data[:8], "little")
    header = damage_json(data[8 : 8 + length], rng, other) if rng.random() < 0.8 else data[8 : 8 + length]
    body = data[8 + length :]
    if rng.random() < 0.2:
        body = damage_bytes(body, rng, other)
    claimed = rng.choice((*_HUGE, length)) if rng.random() < 0.1 else len(header)
    return claimed.to_bytes(8, "little") + header + body
