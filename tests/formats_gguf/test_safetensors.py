"""The safetensors reader: values, shards, and files that lie."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import EdgerunError, FormatError, NotFoundError, UnsupportedError
from edgerun.formats.safetensors import open_safetensors


def pack(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype: str, shape: list[Any], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


VALUES = np.array([[1.0, -2.5, 0.5], [3.0, 0.0, -0.125]], np.float32)  # exact in every float type


def test_all_float_types_read_as_f32(tmp_path: Path) -> None:
    bf16 = (VALUES.view(np.uint32) >> 16).astype(np.uint16)
    data = VALUES.tobytes() + VALUES.astype(np.float16).tobytes() + bf16.tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [2, 3], 0, 24),
        "b": entry("F16", [2, 3], 24, 36),
        "c": entry("BF16", [2, 3], 36, 48),
    }
    (tmp_path / "m.safetensors").write_bytes(pack(header, data))
    with open_safetensors(tmp_path / "m.safetensors") as model:
        assert list(model.tensors) == ["a", "b", "c"]
        for name in "abc":
            assert model.array(name).dtype == np.float32
            assert (model.array(name) == VALUES).all()
            assert (model.rows(name, 1, 2) == VALUES[1:]).all()


def write_one(path: Path, name: str, value: float) -> None:
    path.write_bytes(pack({name: entry("F32", [2], 0, 8)}, np.full(2, value, np.float32).tobytes()))


def test_shards_by_index_and_without(tmp_path: Path) -> None:
    write_one(tmp_path / "m-1.safetensors", "a", 1)
    write_one(tmp_path / "m-2.safetensors", "b", 2)
    with open_safetensors(tmp_path) as model:
        assert sorted(model.tensors) == ["a", "b"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    with open_safetensors(tmp_path) as model:
        assert model.array("b").tolist() == [2, 2]
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(NotFoundError, match="1 of 2 shards are missing: m-2"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../m-1.safetensors"}}, "not a file name"),
        ({"weight_map": {"z": "m-1.safetensors"}}, "in none of the shards"),
        ({"weight_map": []}, "no weight_map"),
        ([], "not a JSON object"),
    ],
)
def test_indexes_that_lie(tmp_path: Path, index: Any, message: str) -> None:
    write_one(tmp_path / "m-1.safetensors", "a", 1)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=message):
        open_safetensors(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no \\*.safetensors"):
        open_safetensors(tmp_path)
    with pytest.raises(NotFoundError, match="no such file"):
        open_safetensors(tmp_path / "a.safetensors")


def test_the_same_tensor_in_two_files(tmp_path: Path) -> None:
    write_one(tmp_path / "m-1.safetensors", "a", 1)
    write_one(tmp_path / "m-2.safetensors", "a", 2)
    with pytest.raises(FormatError, match="also stands in m-1"):
        open_safetensors(tmp_path)


GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1234", "too few"),
        ((1 << 63).to_bytes(8, "little"), "a header of"),
        ((100).to_bytes(8, "little") + b"{}", "a header of 100 bytes"),
        (pack(b"not json"), "not valid JSON"),
        (pack(b"\xff\xfe{"), "not valid JSON"),
        (pack(b"[" * 100_000), "not valid JSON"),
        (pack(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
        (pack(b"[1]"), "not a JSON object"),
        (pack({"a": 1}), "no description"),
        (pack({"a": {**GOOD, "shape": [-2]}}, bytes(8)), "has the shape"),
        (pack({"a": {**GOOD, "shape": [True]}}, bytes(8)), "has the shape"),
        (pack({"a": {**GOOD, "shape": [1] * 9}}, bytes(8)), "has the shape"),
        (pack({"a": {**GOOD, "data_offsets": [0]}}, bytes(8)), "has the data_offsets"),
        (pack({"a": {**GOOD, "data_offsets": [8, 0]}}, bytes(8)), "needs 8 bytes"),
        (pack({"a": entry("F32", [1 << 60, 1 << 60], 0, 8)}, bytes(8)), "needs"),
        (pack({"a": GOOD}, bytes(7)), "truncated"),
        (pack({"a": GOOD, "b": entry("F32", [2], 4, 12)}, bytes(12)), "overlaps"),
        (pack(b'{"a": %s, "a": %s}' % ((json.dumps(GOOD).encode(),) * 2), bytes(8)), "stands twice"),
    ],
)
def test_malformed(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        open_safetensors(tmp_path / "m.safetensors")


def test_other_dtypes(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(pack({"a": entry("F4", [2], 0, 1)}, bytes(1)))
    with pytest.raises(UnsupportedError, match="unknown dtype 'F4'"):
        open_safetensors(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").write_bytes(pack({"a": entry("I8", [2], 0, 2)}, bytes(2)))
    with (
        open_safetensors(tmp_path / "m.safetensors") as model,
        pytest.raises(UnsupportedError, match="holds I8"),
    ):
        model.array("a")


def test_mutations_give_typed_errors(tmp_path: Path) -> None:
    whole = pack({"a": GOOD, "b": entry("BF16", [2, 2], 8, 16)}, bytes(16))
    rng = random.Random(3)
    opened = 0
    for _ in range(1000):
        data = bytearray(whole)
        data[rng.randrange(len(data) - 16)] = rng.randrange(256)
        (tmp_path / "m.safetensors").write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            with open_safetensors(tmp_path / "m.safetensors") as model:
                for name in model.tensors:
                    if model.tensors[name].dtype in ("F32", "BF16"):
                        model.array(name)
            opened += 1
        except EdgerunError:
            continue
    assert 0 < opened < 900
