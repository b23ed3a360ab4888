"""Round trips, alone and through the gguf package in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.formats.gguf import GgmlType, GgufWriter, ValueKind, open_gguf

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda key: not key.startswith(("general.", "split.", "GGUF."))
)
WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
)
ARRAYS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=5),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
VALUES = st.one_of(SCALARS, ARRAYS)
TENSORS = st.dictionaries(
    st.text("abcdef._", min_size=1, max_size=10),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    max_size=4,
)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def random_tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@QUICK
@given(st.dictionaries(KEYS, VALUES, max_size=6), TENSORS)
def test_what_goes_in_comes_out(tmp_path: Path, values: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    tensors = random_tensors(shapes)
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        for key, value in values.items():
            w.add(key, value)
        for name, array in tensors.items():
            w.add_tensor(name, array, GgmlType.F32)
    with open_gguf(tmp_path / "m.gguf") as g:
        assert {key: plain(g.metadata[key]) for key in values} == values
        assert list(g.tensors) == list(tensors)
        for name, array in tensors.items():
            assert g.tensors[name].shape == array.shape
            assert (g.raw(name).view("<f4") == array).all()


@QUICK
@given(st.dictionaries(KEYS, VALUES, max_size=6), TENSORS)
def test_the_gguf_package_reads_ours(tmp_path: Path, values: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    tensors = random_tensors(shapes)
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        for key, value in values.items():
            w.add(key, value)
        for name, array in tensors.items():
            w.add_tensor(name, array, GgmlType.F32)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, value in values.items():
        field = reader.get_field(key)
        assert field is not None
        assert field.contents() == value
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert list(theirs) == list(tensors)
    for name, array in tensors.items():
        assert (theirs[name].data.reshape(array.shape) == array).all()
        assert theirs[name].shape.tolist() == list(reversed(array.shape))


@QUICK
@given(st.dictionaries(KEYS, VALUES, max_size=6), TENSORS)
def test_we_read_the_gguf_packages(tmp_path: Path, values: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    tensors = random_tensors(shapes)
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in values.items():
        kind = gguf.GGUFValueType.get_type(value)
        if kind == gguf.GGUFValueType.INT32 and isinstance(value, int):
            kind = gguf.GGUFValueType.UINT64 if value >= 0 else gguf.GGUFValueType.INT64
        w.add_key_value(key, value, kind)
    for name, array in tensors.items():
        w.add_tensor(name, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.architecture == "llama"
        assert {key: plain(g.metadata[key]) for key in values} == values
        for name, array in tensors.items():
            assert g.tensors[name].shape == array.shape
            assert (g.raw(name).view("<f4") == array).all()


KNOWN_TO_BOTH = [type_ for type_ in GgmlType if type_ in {each.value for each in gguf.GGMLQuantizationType}]


def test_what_the_package_lacks() -> None:
    """Whatever it learns is compared from then on."""
    assert {type_.name for type_ in GgmlType} - {type_.name for type_ in KNOWN_TO_BOTH} <= {"Q1_0", "Q2_0"}


@pytest.mark.parametrize("type_", KNOWN_TO_BOTH)
def test_sizes_of_every_type_agree(tmp_path: Path, type_: GgmlType) -> None:
    theirs = gguf.GGMLQuantizationType(int(type_))
    assert theirs.name == type_.name
    assert gguf.GGML_QUANT_SIZES[theirs] == (type_.block_size, type_.block_bytes)
    raw = np.arange(3 * 2 * type_.block_bytes, dtype=np.uint8).reshape(3, 2 * type_.block_bytes)
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add_tensor("t", raw, type_)
    (tensor,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert tensor.tensor_type == theirs
    assert tensor.data.tobytes() == raw.tobytes()
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.tensors["t"].shape == (3, 2 * type_.block_size)
        assert (g.raw("t") == raw).all()


@pytest.mark.parametrize("kind", [kind for kind in ValueKind if kind not in (ValueKind.STRING, ValueKind.ARRAY)])
def test_every_kind_of_number_agrees(tmp_path: Path, kind: ValueKind) -> None:
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    w.add_key_value("one", kind is ValueKind.BOOL or 3, gguf.GGUFValueType(int(kind)))
    w.add_key_value("more", [True, False], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(int(kind)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.metadata["one"] == (kind is ValueKind.BOOL or 3)
        assert g.metadata.kind("one") == (kind, 1)
        assert g.metadata["more"].tolist() == [1, 0]
        assert g.metadata.kind("more") == (kind, 2)
