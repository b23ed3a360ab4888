"""Files of our own that hold arrays: plain safetensors, read back as they were or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import FormatError, UnsupportedError, UsageError
from edgerun.formats.checked_tensors import CheckedTensors, Form, is_tensor_file, tensor_file
from edgerun.formats.safetensors import open_safetensors

HEADER = {"words": ["é", "\ud800", None, 1.5], "deep": {"a": {}}}
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "ids": np.arange(7, dtype=np.int32),
    "bytes": np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
    "none": np.zeros((0, 4), np.uint8),
}
FORMS: dict[str, Form] = {"ids": ("I32", (7,)), "bytes": ("U8", (3, 4, 5)), "none": ("U8", (0, 4))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"".join(map(bytes, tensor_file("a thing", 3, HEADER, FORMS, ARRAYS.__getitem__))))
    return path


def test_what_was_written_is_read(path: Path) -> None:
    with CheckedTensors(path, "a thing", 3) as file:
        assert file.header == HEADER and file.forms == FORMS
        for name, array in ARRAYS.items():
            found = file.read(name)
            assert found.dtype == array.dtype and np.array_equal(found, array)


def test_it_is_safetensors_as_anybody_reads_them(path: Path) -> None:
    """By the format's own words: eight bytes of length, JSON, data without gaps that ends with the file."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    assert n % 8 == 0 and header.pop("__metadata__")["kind"] == "a thing"
    ends = [entry["data_offsets"] for entry in header.values()]
    assert [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])] and 8 + n + ends[-1][1] == len(data)
    start, end = header["ids"]["data_offsets"]
    assert np.array_equal(np.frombuffer(data[8 + n :][start:end], "<i4"), ARRAYS["ids"])
    with open_safetensors(path) as file:
        assert file.metadata["version"] == "3" and set(file.tensors) == {*ARRAYS, "checksums"}
        assert file.raw("ids").view("<i4").tolist() == list(range(7))


def test_other_kinds_and_versions(path: Path, tmp_path: Path) -> None:
    assert is_tensor_file(path, "a thing") and not is_tensor_file(path, "another")
    assert not is_tensor_file(tmp_path / "none", "a thing") and not is_tensor_file(tmp_path, "a thing")
    with pytest.raises(FormatError, match="not another"):
        CheckedTensors(path, "another", 3)
    with pytest.raises(UnsupportedError, match="version '3'"):
        CheckedTensors(path, "a thing", 4)


@pytest.mark.parametrize("at", ["ids", "bytes", "header"])
def test_a_damaged_byte_is_found(path: Path, at: str) -> None:
    data = path.read_bytes()
    mark = {"ids": ARRAYS["ids"].tobytes(), "bytes": ARRAYS["bytes"].tobytes(), "header": b"words"}[at]
    where = data.index(mark) + 2
    path.write_bytes(data[:where] + bytes([data[where] ^ 4]) + data[where + 1 :])
    with pytest.raises(FormatError, match="not what was written"), CheckedTensors(path, "a thing", 3) as file:
        file.read(at)


def test_what_cannot_be_written() -> None:
    for header in ({"a": object()}, {"a": {1, 2}}, {"a": "x" * (65 << 20)}):
        with pytest.raises(UsageError, match="a thing"):
            list(tensor_file("a thing", 1, header, {}, ARRAYS.__getitem__))
    with pytest.raises(ValueError, match="was announced"):
        list(tensor_file("a thing", 1, {}, {"ids": ("I32", (6,))}, ARRAYS.__getitem__))
