"""Models split over several files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgerun.errors import FormatError, NotFoundError
from edgerun.formats.gguf import GgmlType, GgufWriter, ValueKind, open_gguf


def write_split(folder: Path, n_tensors: int = 5) -> list[Path]:
    """As the gguf package splits: two tensors a file."""
    w = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=2)
    w.add_block_count(3)
    for n in range(n_tensors):
        w.add_tensor(f"t{n}.weight", np.full((2, 32), n, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return sorted(folder.glob("model-*.gguf"))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_opens_the_whole(tmp_path: Path, part: int) -> None:
    paths = write_split(tmp_path)
    assert [path.name for path in paths] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    with open_gguf(paths[part]) as g:
        assert g.paths == tuple(paths)
        assert g.architecture == "llama"
        assert g.metadata["llama.block_count"] == 3
        assert list(g.tensors) == [f"t{n}.weight" for n in range(5)]
        for n in range(5):
            assert (g.raw(f"t{n}.weight").view("<f4") == n).all()
        assert g.tensors["t4.weight"].path == paths[2]
        assert g.n_bytes == 5 * 256


def test_missing_parts_are_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].unlink()
    with pytest.raises(NotFoundError, match="1 of 3 parts are missing.*model-00002-of-00003.gguf"):
        open_gguf(paths[0])


def test_a_renamed_part_says_why(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    lost = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match="one of 3 parts"):
        open_gguf(lost)


def write_part(path: Path, number: int, count: int, tensors: list[str], total: int | None = None) -> None:
    with GgufWriter(path, "llama") as w:
        w.add("split.no", number, ValueKind.UINT16)
        w.add("split.count", count, ValueKind.UINT16)
        if total is not None:
            w.add("split.tensors.count", total, ValueKind.INT32)
        for name in tensors:
            w.add_tensor(name, np.ones(8, np.float32), GgmlType.F32)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 2, ["a"], None), (1, 2, ["a"], None)], "also stands in"),
        ([(0, 2, ["a"], None), (0, 2, ["b"], None)], "part 0"),
        ([(0, 2, ["a"], None), (1, 3, ["b"], None)], "of 3"),
        ([(0, 2, ["a"], 3), (1, 2, ["b"], None)], "says 3"),
    ],
)
def test_parts_that_disagree(tmp_path: Path, parts: list, message: str) -> None:  # type: ignore[type-arg]
    for n, (number, count, tensors, total) in enumerate(parts, 1):
        write_part(tmp_path / f"m-0000{n}-of-00002.gguf", number, count, tensors, total)
    with pytest.raises(FormatError, match=message):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_a_split_count_of_one_is_a_whole_model(tmp_path: Path) -> None:
    write_part(tmp_path / "any.gguf", 0, 1, ["a"])
    with open_gguf(tmp_path / "any.gguf") as g:
        assert list(g.tensors) == ["a"]


@pytest.mark.parametrize("count", ["two", True, -1, 100_000])
def test_a_strange_split_count(tmp_path: Path, count: object) -> None:
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add("split.count", count)
    with pytest.raises(FormatError, match="split.count"):
        open_gguf(tmp_path / "m.gguf")
