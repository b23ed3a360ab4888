"""Weights to blocks: bit for bit as the gguf package where it has the type, as good as llama.cpp's search elsewhere."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants as theirs
from hypothesis import given
from hypothesis import strategies as st

from edgerun.errors import UsageError
from edgerun.formats.gguf import GgmlType
from edgerun.formats.quants import QUANTIZERS, dequantize, quantize
from tests.formats_quants.samples import mean_error, weights

KINDS = ("normal", "laplace", "zeros", "positive")
BLOCKS = [type for type in QUANTIZERS if type.block_size > 1]
SEARCHED = [
    type for type in BLOCKS if type.name[-1] == "K" or type.name in ("IQ4_NL", "IQ4_XS", "NVFP4", "Q1_0", "Q2_0")
]
IN_THE_PACKAGE = [type for type in QUANTIZERS if type not in SEARCHED]

# Mean squared errors of llama.cpp's quantisers for the four kinds, without an importance matrix, in units of the mean
# square of the weights: tools/record_quants.py printed them.
LLAMA_CPP = {
    "Q4_0": (0.00733615, 0.0113066, 0.00654099, 0.00354584),
    "Q4_1": (0.00608563, 0.00832776, 0.0075392, 0.000923787),
    "Q5_0": (0.00180903, 0.00282611, 0.00160948, 0.000889442),
    "Q5_1": (0.00142385, 0.00195956, 0.00177863, 0.000214833),
    "Q8_0": (2.83772e-05, 4.49662e-05, 2.52978e-05, 1.41479e-05),
    "Q2_K": (0.0874004, 0.117836, 0.120526, 0.0186113),
    "Q3_K": (0.0226326, 0.0309537, 0.0193302, 0.0118767),
    "Q4_K": (0.00506109, 0.00707505, 0.0052133, 0.000850002),
    "Q5_K": (0.00129758, 0.00182148, 0.00141941, 0.000208561),
    "Q6_K": (0.000313893, 0.00046734, 0.000263424, 0.000173188),
    "IQ4_NL": (0.00576221, 0.0077026, 0.00529491, 0.00362786),
    "IQ4_XS": (0.0058535, 0.00782779, 0.00539657, 0.00368908),
    "MXFP4": (0.0130426, 0.0158589, 0.0135126, 0.0208215),
    "NVFP4": (0.0106413, 0.0086481, 0.0082368, 0.0103048),
    "TQ1_0": (0.649737, 0.687426, 0.622013, 0.247121),
    "TQ2_0": (0.649737, 0.687426, 0.622013, 0.247121),
    "Q1_0": (0.359963, 0.495315, 0.549384, 0.24817),
    "Q2_0": (0.513071, 0.525483, 0.475146, 0.238732),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
def test_as_good_as_llama_cpp(type: GgmlType, kind: str) -> None:
    """Within a thousandth: sums in another order choose another of two equally good scales now and then."""
    x = weights(kind)
    error = mean_error(x, dequantize(quantize(x, type), type))
    assert error <= 1.001 * LLAMA_CPP[type.name][KINDS.index(kind)]


ROWS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32)


@pytest.mark.parametrize("type", IN_THE_PACKAGE, ids=lambda type: type.name)
def test_as_the_package(type: GgmlType) -> None:
    for kind in KINDS:
        x = weights(kind)
        want = theirs.quantize(x, gguf.GGMLQuantizationType(int(type)))
        assert (quantize(x, type) == want.view(np.uint8).reshape(len(x), -1)).all()


@given(st.sampled_from(IN_THE_PACKAGE), ROWS)
def test_chosen_weights_as_the_package(type: GgmlType, row: list[float]) -> None:
    x = np.resize(np.array(row, np.float32), (1, max(32, type.block_size)))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # theirs, for tiny scales
        want = theirs.quantize(x, gguf.GGMLQuantizationType(int(type)))
        got = quantize(x, type)
    if type is GgmlType.MXFP4 and 0 < np.abs(x).max() < 2.0**-124:
        return  # below the least scale the package's exponent wraps round to a huge one
    assert (got == want.view(np.uint8).reshape(1, -1)).all()


@given(st.sampled_from(SEARCHED), st.lists(st.integers(-1000, 1000), min_size=256, max_size=256), st.integers(-6, 6))
def test_twice_the_weights_are_twice_the_blocks(type: GgmlType, row: list[int], power: int) -> None:
    """Weights times a power of two: the same codes, the scale times that power, and so every weight that comes back."""
    x = np.array(row, np.float32).reshape(1, -1) / np.float32(64)
    back = dequantize(quantize(x, type), type)
    scaled = dequantize(quantize(x * np.float32(2.0**power), type), type)
    if type is GgmlType.NVFP4:  # its scales have three bits of mantissa and end at 2^-9 and 448
        assert np.abs(scaled - x * 2.0**power).max() <= np.abs(x).max() * 2.0**power
    elif np.abs(back[back != 0]).min(initial=1) * 2.0**power > 1e-2:  # no f16 below the normal ones
        assert np.array_equal(scaled, back * np.float32(2.0**power))


@given(st.sampled_from(BLOCKS), st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32))
def test_no_weight_comes_back_far_away(type: GgmlType, row: list[float]) -> None:
    """Nothing wraps round or loses its sign: errors are below the greatest weight, whatever stands beside it."""
    x = np.resize(np.array(row, np.float32), (1, 256))
    with np.errstate(over="ignore", invalid="ignore"):
        back = dequantize(quantize(x, type), type)
    assert np.abs(back - x).max() <= 1.01 * np.abs(x).max() + 1e-6


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
def test_nothing_stays_nothing(type: GgmlType) -> None:
    x = np.zeros((2, 512), np.float32)
    assert not dequantize(quantize(x, type), type).any()
    x[0, 0] = 1.0  # the other groups and blocks stay zeros
    assert not dequantize(quantize(x, type), type)[:, 256:].any()


def test_mxfp4_takes_the_nearest_of_all_codes() -> None:
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    raw = quantize(x, GgmlType.MXFP4)
    every = np.zeros((64, 16, 17), np.uint8)
    every[:, :, 0] = raw[:, None, 0]
    every[:, :, 1:] = (np.arange(16) * 17)[None, :, None]
    values = dequantize(every.reshape(-1, 17), GgmlType.MXFP4).reshape(64, 16, 32)[:, :, 0]
    least = np.abs(values[:, None, :] - x[:, :, None]).min(axis=2)
    assert np.array_equal(np.abs(dequantize(raw, GgmlType.MXFP4) - x), least)


def test_nvfp4_scales_are_the_nearest() -> None:
    """(llama.cpp takes 7/512 for scales from 7.5/512 to 8/512, and 448 for all above 256.)"""
    codes = np.arange(0x7F, dtype=np.uint8)
    blocks = np.zeros((len(codes), 36), np.uint8)
    blocks[:, 0], blocks[:, 4] = codes, 2  # the code of 1, doubled: 2 x half a scale
    scales = dequantize(blocks, GgmlType.NVFP4)[:, 0].astype(np.float64)
    wanted = np.geomspace(2.0**-9, 440, 500)
    x = np.zeros((500, 64), np.float32)
    x[:, 0] = wanted * 6
    got = scales[quantize(x, GgmlType.NVFP4)[:, 0]]
    assert np.allclose(np.abs(got - wanted), np.abs(scales[None] - wanted[:, None]).min(axis=1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "I32"])
def test_types_that_are_only_read(name: str) -> None:
    with pytest.raises(UsageError, match=f"cannot quantise to {name}"):
        quantize(np.zeros((1, 256), np.float32), GgmlType[name])
