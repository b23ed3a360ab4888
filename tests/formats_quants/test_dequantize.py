"""Blocks to weights, bit for bit as the gguf package; types that it lacks against loops over llama.cpp's definition."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest
from gguf import quants as theirs
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType
from edgerun.formats.quants import DEQUANTIZERS, dequantize, grids
from tests.formats_quants.samples import sane_blocks

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
LACKING = (GgmlType.Q1_0, GgmlType.Q2_0)
COMPARED = [type for type in DEQUANTIZERS if type not in LACKING]
HALVES = np.array(  # every kind of f16: zeros, subnormals, ones, the largest, infinities, quiet and signalling nans
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01],
    np.uint16,
)


def oracle(raw: U8, type: GgmlType) -> F32:
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(theirs.dequantize(raw, gguf.GGMLQuantizationType(int(type))), np.float32)


def same_bits(a: F32, b: F32) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("type", COMPARED, ids=lambda type: type.name)
def test_any_bytes(type: GgmlType) -> None:
    raw = np.random.default_rng(int(type)).integers(0, 256, (64, 40 * type.block_bytes), dtype=np.uint8)
    assert same_bits(dequantize(raw, type), oracle(raw, type))


@pytest.mark.parametrize("type", COMPARED, ids=lambda type: type.name)
def test_extreme_scales(type: GgmlType) -> None:
    """Each kind of f16 at each even byte of a block, among all zeros, all ones, and any bytes."""
    n = type.block_bytes
    rng = np.random.default_rng(int(type))
    for ground in (np.zeros(n, np.uint8), np.full(n, 255, np.uint8), rng.integers(0, 256, n, dtype=np.uint8)):
        for at in range(0, n - 1, 2):
            raw = np.tile(ground, (len(HALVES), 1))
            raw[:, at : at + 2] = HALVES.view(np.uint8).reshape(-1, 2)
            assert same_bits(dequantize(raw, type), oracle(raw, type))


@given(st.data())
def test_chosen_bytes(data: st.DataObject) -> None:
    type = data.draw(st.sampled_from(COMPARED))
    raw = np.frombuffer(data.draw(st.binary(min_size=type.block_bytes, max_size=type.block_bytes)), np.uint8)
    assert same_bits(dequantize(raw, type), oracle(raw, type))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1"])
def test_grids(name: str) -> None:
    table = getattr(theirs, "IQ1_S" if name == "IQ1" else name)
    table.init_grid()
    words = grids.words(getattr(grids, name))
    assert words.dtype == np.int8
    assert np.array_equal(words, table.grid.reshape(table.grid_shape))
    with pytest.raises(ValueError, match="read-only"):
        words[0, 0] = 1


@given(st.binary(min_size=18, max_size=18))
def test_q1_0_by_its_definition(block: bytes) -> None:
    raw = np.frombuffer(block, np.uint8)
    d = raw[:2].view(np.float16).astype(np.float32)[0]
    want = np.array([d if block[2 + j // 8] >> (j % 8) & 1 else -d for j in range(128)], np.float32)
    assert same_bits(dequantize(raw, GgmlType.Q1_0), want)


@given(st.binary(min_size=18, max_size=18))
def test_q2_0_by_its_definition(block: bytes) -> None:
    raw = np.frombuffer(block, np.uint8)
    d = raw[:2].view(np.float16).astype(np.float32)[0]
    with np.errstate(invalid="ignore"):
        want = np.array([np.float32((block[2 + j // 4] >> 2 * (j % 4) & 3) - 1) * d for j in range(64)], np.float32)
    assert same_bits(dequantize(raw, GgmlType.Q2_0), want)


@pytest.mark.parametrize(
    ("type", "digest"),
    [
        (GgmlType.Q1_0, "ca9b09a32ba1cb012e27b8326abbcee62c121021e2bef6da4a080f704ea77a91"),
        (GgmlType.Q2_0, "d30fcf1870aee03496f3ca0aa2b7a0b499476097e44b5448d03b8825fa14f3c5"),
    ],
    ids=lambda value: value.name if isinstance(value, GgmlType) else "",
)
def test_what_llama_cpp_gives(type: GgmlType, digest: str) -> None:
    """sha256 of the f32 weights that llama.cpp's `dequantize_row_*` made of these blocks (tools/record_quants.py)."""
    raw = sane_blocks(type)
    assert hashlib.sha256(dequantize(raw, type).tobytes()).hexdigest() == digest


def test_rows_and_refusals() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (3, 2, 2 * 50), dtype=np.uint8)
    whole = dequantize(raw, GgmlType.IQ1_S)
    assert whole.shape == (3, 2, 512)
    assert same_bits(np.ascontiguousarray(whole[1, 1]), dequantize(raw[1, 1], GgmlType.IQ1_S))
    with pytest.raises(FormatError, match="whole IQ1_S blocks of 50 bytes"):
        dequantize(raw[..., :75], GgmlType.IQ1_S)
    with pytest.raises(UnsupportedError, match="I32"):
        dequantize(raw, GgmlType.I32)


def test_every_weight_type_has_a_dequantiser() -> None:
    no_weights = {"I8", "I16", "I32", "I64", "F64"}
    assert {type.name for type in DEQUANTIZERS} == {type.name for type in GgmlType} - no_weights
