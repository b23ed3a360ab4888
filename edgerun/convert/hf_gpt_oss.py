"""gpt-oss of OpenAI: experts of one tensor each for all, gate and up row by row in turn, in MXFP4 as they were trained.

Source: llama.cpp's converter (conversion/gpt_oss.py), for names and layouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.tensors import Source, from_array
from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType
from edgerun.formats.quants import dequantize
from edgerun.formats.safetensors import SafetensorsFile

_BLOCK = 32  # weights of a block: two in a byte, and a scale
_PARTS = {"gate": (0, 2), "up": (1, 2), "down": (0, 1)}  # the first row in the checkpoint's tensor, and the step


def prepare_gpt_oss(config: dict[str, Any]) -> dict[str, Any]:
    """Layers see a window and everything in turn, by the architecture: FormatError where config.json says otherwise."""
    kinds, n_layers = config.get("layer_types"), config.get("num_hidden_layers")
    if isinstance(kinds, list) and type(n_layers) is int:
        usual = [("sliding_attention", "full_attention")[i % 2] for i in range(min(n_layers, 1 << 16))]
        if kinds != usual:
            raise FormatError("config.json: layer_types is not sliding_attention and full_attention in turn")
    return config


def gpt_oss_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The width of an expert is that of the feed-forward."""
    return {"expert_feed_forward_length": config.get("intermediate_size")}


def gpt_oss_experts(
    model: SafetensorsFile, prefix: str, layer: int, sizes: tuple[int, int, int], used: set[str]
) -> Iterator[Source]:
    """The experts of a layer. sizes: how many, the model's width, an expert's. FormatError for other shapes."""
    n_experts, d_model, d_ff = sizes
    at = f"{prefix}layers.{layer}.mlp.experts."
    for part, (first, step) in _PARTS.items():
        stem = "down_proj" if part == "down" else "gate_up_proj"
        rows, cols = (d_model, d_ff) if part == "down" else (d_ff, d_model)
        name = f"blk.{layer}.ffn_{part}_exps"
        if f"{at}{stem}_blocks" in model.tensors:
            yield _packed(model, f"{at}{stem}", f"{name}.weight", (n_experts, rows, cols), first, step)
            used |= {f"{at}{stem}_blocks", f"{at}{stem}_scales"}
        else:
            yield _turned(model, f"{at}{stem}", f"{name}.weight", (n_experts, rows, cols), first, step)
            used.add(f"{at}{stem}")
        bias = f"{at}{stem}_bias"
        _check(model, bias, (n_experts, rows * step))
        used.add(bias)
        yield from_array(f"{name}.bias", np.ascontiguousarray(model.array(bias)[:, first::step]))


def _check(model: SafetensorsFile, name: str, shape: tuple[int, ...], dtype: str | None = None) -> None:
    tensor = model.tensors.get(name)
    if tensor is None:
        raise FormatError(f"the checkpoint has no {name}: a shard is missing")
    if tensor.shape != shape or (dtype is not None and tensor.dtype != dtype):
        raise FormatError(
            f"{tensor.path}: {name} is {tensor.dtype}{list(tensor.shape)}, not {dtype or ''}{list(shape)}"
        )


def _packed(model: SafetensorsFile, stem: str, name: str, shape: tuple[int, int, int], first: int, step: int) -> Source:
    """Of MXFP4: the same blocks, with nibbles in the order that GGUF has them."""
    n_experts, rows, cols = shape
    n_blocks = cols // _BLOCK
    if cols % _BLOCK:
        raise FormatError(f"config.json: {cols} weights are no whole blocks of {_BLOCK}")
    _check(model, f"{stem}_blocks", (n_experts, rows * step, n_blocks, _BLOCK // 2), "U8")
    _check(model, f"{stem}_scales", (n_experts, rows * step, n_blocks), "U8")

    def raw(start: int, stop: int) -> NDArray[np.uint8]:
        blocks = model.bytes_of_rows(f"{stem}_blocks", start * step * n_blocks, stop * step * n_blocks)
        scales = model.bytes_of_rows(f"{stem}_scales", start * step, stop * step)
        nibbles = blocks.reshape(stop - start, step, n_blocks, _BLOCK // 2)[:, first]
        return np.concatenate(
            [scales.reshape(stop - start, step, n_blocks, 1)[:, first], _reordered(nibbles)], axis=-1
        ).reshape(stop - start, -1)

    def floats(start: int, stop: int) -> NDArray[np.float32]:
        return dequantize(raw(start, stop), GgmlType.MXFP4)

    return Source(name, shape, GgmlType.MXFP4, floats, raw)


def _reordered(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes (..., 16) of neighbours -> bytes of weights that are 16 apart."""
    weights = np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(*nibbles.shape[:-1], _BLOCK)
    packed: NDArray[np.uint8] = weights[..., : _BLOCK // 2] | (weights[..., _BLOCK // 2 :] << 4)
    return packed


def _turned(
    model: SafetensorsFile, theirs: str, name: str, shape: tuple[int, int, int], first: int, step: int
) -> Source:
    """Of floats: (experts, columns, rows) in the checkpoint. One expert is held at a time."""
    n_experts, rows, cols = shape
    _check(model, theirs, (n_experts, cols, rows * step))
    held: dict[int, NDArray[np.float32]] = {}

    def expert(i: int) -> NDArray[np.float32]:
        found = held.get(i)  # several threads may ask
        if found is None:
            held.clear()
            found = held[i] = np.ascontiguousarray(model.rows(theirs, i * cols, (i + 1) * cols).T[first::step])
        return found

    def take(start: int, stop: int) -> NDArray[np.float32]:
        pieces = []
        while start < stop:
            i, at = divmod(start, rows)
            last = min(rows, at + stop - start)
            pieces.append(expert(i)[at:last])
            start += last - at
        return np.concatenate(pieces)

    return Source(name, shape, GgmlType[model.tensors[theirs].dtype], take, done=held.clear)
