"""What the writer writes, the reader reads; values, tensors, laziness, lifetimes."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import DoesNotFitError, EdgerunError, FormatError, NotFoundError, UsageError
from edgerun.events import Event, Progress
from edgerun.formats.gguf import GgmlType, GgufWriter, ValueKind, open_gguf


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def write_small(path: Path) -> Path:
    with GgufWriter(path, "llama") as w:
        w.add("llama.block_count", 2)
        w.add("tokenizer.ggml.tokens", ["<unk>", "\u2581a", "é"])
        w.add_tensor("a.weight", np.arange(64, dtype=np.float32).reshape(2, 32), GgmlType.F32)
        w.add_tensor("b.weight", np.arange(216, dtype=np.uint8).reshape(3, 2, 36), GgmlType.Q4_0)
    return path


@pytest.mark.parametrize(
    ("value", "kind", "stored"),
    [
        (True, None, ValueKind.BOOL),
        (7, None, ValueKind.UINT32),
        (-7, None, ValueKind.INT32),
        (1 << 40, None, ValueKind.UINT64),
        (-(1 << 40), None, ValueKind.INT64),
        (0.5, None, ValueKind.FLOAT32),
        (0.1, ValueKind.FLOAT64, ValueKind.FLOAT64),
        (200, ValueKind.UINT8, ValueKind.UINT8),
        (-3, ValueKind.INT8, ValueKind.INT8),
        (65535, ValueKind.UINT16, ValueKind.UINT16),
        ("naïve ▁", None, ValueKind.STRING),
        ("", None, ValueKind.STRING),
    ],
)
def test_scalars_come_back(tmp_path: Path, value: object, kind: ValueKind | None, stored: ValueKind) -> None:
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add("key", value, kind)
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.metadata["key"] == value
        assert type(g.metadata["key"]) is type(value)
        assert g.metadata.kind("key") == (stored, 1)


def test_arrays_come_back(tmp_path: Path) -> None:
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add("ints", [1, -2, 3])
        w.add("floats", [0.5, 1.5])
        w.add("bools", [True, False])
        w.add("u64", np.array([1 << 63], np.uint64))
        w.add("none", [], ValueKind.STRING)
        w.add("no_floats", [], ValueKind.FLOAT32)
        w.add("words", ["a", "", "ü" * 300])
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.metadata["ints"].dtype == np.int32
        assert g.metadata["ints"].tolist() == [1, -2, 3]
        assert g.metadata["floats"].tolist() == [0.5, 1.5]
        assert g.metadata["bools"].tolist() == [True, False]
        assert g.metadata["u64"].tolist() == [1 << 63]
        assert g.metadata["none"] == []
        assert g.metadata["no_floats"].shape == (0,)
        assert g.metadata["words"] == ["a", "", "ü" * 300]
        assert g.metadata.kind("words") == (ValueKind.STRING, 3)
        assert list(g.metadata) == [
            "general.architecture", "ints", "floats", "bools", "u64", "none", "no_floats", "words",
        ]  # fmt: skip
        assert g.get("absent", 5) == 5


def test_bytes_that_are_not_utf8_survive(tmp_path: Path) -> None:
    broken = b"\xe2\x96"
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add("tokens", [broken, b"ok"])
        w.add("one", broken)
    with open_gguf(tmp_path / "m.gguf") as g:
        tokens = g.metadata["tokens"]
        with GgufWriter(tmp_path / "again.gguf", "llama") as w:
            w.add("tokens", tokens)
            w.add("one", g.metadata["one"])
    assert tokens[0].encode("utf-8", "surrogateescape") == broken
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_tensors_come_in_numpy_order(tmp_path: Path) -> None:
    with open_gguf(write_small(tmp_path / "m.gguf")) as g:
        assert g.architecture == "llama"
        assert list(g.tensors) == ["a.weight", "b.weight"]
        info = g.tensors["b.weight"]
        assert (info.shape, info.type, info.n_bytes) == ((3, 2, 64), GgmlType.Q4_0, 216)
        assert info.offset % 32 == 0
        raw = g.raw("a.weight")
        assert raw.shape == (2, 128)
        assert raw.view("<f4").tolist() == np.arange(64, dtype=np.float32).reshape(2, 32).tolist()
        assert g.raw("b.weight").tobytes() == bytes(range(216))
        assert g.n_bytes == 256 + 216
        assert g.file_bytes == (tmp_path / "m.gguf").stat().st_size
        with (tmp_path / "m.gguf").open("rb") as file:
            file.seek(info.offset)
            assert file.read(info.n_bytes) == bytes(range(216))


def test_rows_alone_and_in_any_order(tmp_path: Path) -> None:
    big = np.arange(1 << 16, dtype=np.float32).reshape(2, 128, 256)
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add_tensor("first", np.ones(8, np.float32), GgmlType.F32)
        w.add_tensor("big", big, GgmlType.F32)
    flat = big.reshape(256, 256)
    with open_gguf(tmp_path / "m.gguf") as g:
        assert (g.raw("big").view("<f4") == big).all()
        assert (g.rows("big", 100, 131).view("<f4") == flat[100:131]).all()
        buffer = np.zeros(5000, np.uint8)
        given = g.rows("big", 254, 256, buffer)
        assert np.shares_memory(given, buffer) and (given.view("<f4") == flat[254:]).all()
        assert g.rows("big", 3, 3).shape == (0, 1024)
        for ids in ([0], [255, 0, 7, 7, 8, 9, 200, 255], list(range(256)), [3, 5, 9, 14], []):
            assert (g.gather("big", np.array(ids, np.int32)).view("<f4") == flat[ids]).all()
        for first, last in ((0, 257), (-1, 3), (5, 4)):
            with pytest.raises(ValueError, match="big has 256 rows"):
                g.rows("big", first, last)
        for ids in ([-1, 3], [256]):
            with pytest.raises(IndexError, match="rows 0 to 255"):
                g.gather("big", np.array(ids, np.int32))


def test_arrays_outlive_the_file_and_closed_files_say_so(tmp_path: Path) -> None:
    g = open_gguf(write_small(tmp_path / "m.gguf"))
    raw = g.raw("a.weight")
    g.close()
    g.close()
    assert raw.view("<f4")[1, 31] == 63
    with pytest.raises(ValueError, match="closed"):
        g.raw("a.weight")
    with pytest.raises(ValueError, match="closed"):
        _ = g.metadata["llama.block_count"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        open_gguf(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="not a file"):
        open_gguf(tmp_path)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="empty"):
        open_gguf(tmp_path / "empty.gguf")
    with (
        open_gguf(write_small(tmp_path / "m.gguf")) as g,
        pytest.raises(NotFoundError, match="no tensor 'c'"),
    ):
        g.raw("c")
    with GgufWriter(tmp_path / "bare.gguf", None) as w:
        w.add("x", 1)
    with open_gguf(tmp_path / "bare.gguf") as g, pytest.raises(FormatError, match="architecture"):
        _ = g.architecture


@pytest.mark.parametrize("value", [b"\xff", "x\ny", "architektür", 7])
def test_an_architecture_that_is_no_name(tmp_path: Path, value: object) -> None:
    with GgufWriter(tmp_path / "m.gguf", None) as w:
        w.add("general.architecture", value)
    with open_gguf(tmp_path / "m.gguf") as g, pytest.raises(FormatError, match="general.architecture"):
        _ = g.architecture


def test_version_2_reads_alike(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    with open_gguf(path) as g:
        assert g.version == 2
        assert g.metadata["llama.block_count"] == 2


def test_alignment_is_kept(tmp_path: Path) -> None:
    with GgufWriter(tmp_path / "m.gguf", "llama", alignment=4096) as w:
        w.add_tensor("a", np.ones(3, np.float32), GgmlType.F32)
        w.add_tensor("b", np.full(3, 2, np.float32), GgmlType.F32)
    with open_gguf(tmp_path / "m.gguf") as g:
        assert [info.offset % 4096 for info in g.tensors.values()] == [0, 0]
        assert g.raw("b").view("<f4").tolist() == [2.0, 2.0, 2.0]


def test_lazy_data_comes_in_pieces_and_is_called_once(tmp_path: Path) -> None:
    calls = []

    def pieces():  # type: ignore[no-untyped-def]
        calls.append(1)
        for row in range(4):
            yield np.full(8, row, np.float32)

    seen: list[Event] = []
    with GgufWriter(tmp_path / "m.gguf", "llama", events=seen.append) as w:
        w.add_tensor("a", pieces, GgmlType.F32, (4, 8))
        assert not calls
    assert calls == [1]
    with open_gguf(tmp_path / "m.gguf") as g:
        assert g.raw("a").view("<f4")[:, 0].tolist() == [0, 1, 2, 3]
    assert isinstance(seen[-1], Progress)
    assert seen[-1].done == seen[-1].total == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: w.add("llama.block_count", 3),
        lambda w: w.add("x", object()),
        lambda w: w.add("x", 300, ValueKind.UINT8),
        lambda w: w.add("x", -1, ValueKind.UINT32),
        lambda w: w.add("x", [[1, 2], [3, 4]]),
        lambda w: w.add("x", "text", ValueKind.UINT32),
        lambda w: w.add("x", ["a", 1]),
        lambda w: w.add("x", "\ud800"),
        lambda w: w.add("", 1),
        lambda w: w.add_tensor("t", np.ones(3, np.float32), GgmlType.F32),
        lambda w: w.add_tensor("n" * 64, np.ones(3, np.float32), GgmlType.F32),
        lambda w: w.add_tensor("u", np.ones((2, 19), np.uint8), GgmlType.Q4_0),
        lambda w: w.add_tensor("u", np.ones((2, 32), np.float32), GgmlType.Q4_0),
        lambda w: w.add_tensor("u", np.ones((2, 18), np.uint8), GgmlType.Q4_0, (3, 32)),
        lambda w: w.add_tensor("u", np.ones((1, 1, 1, 1, 1), np.float32), GgmlType.F32),
        lambda w: w.add_tensor("u", np.ones((0, 4), np.float32), GgmlType.F32),
        lambda w: w.add_tensor("u", lambda: np.ones(3, np.float32), GgmlType.F32),
    ],
)
def test_the_writer_refuses(tmp_path: Path, wrong) -> None:  # type: ignore[no-untyped-def]
    w = GgufWriter(tmp_path / "m.gguf", "llama")
    w.add("llama.block_count", 2)
    w.add_tensor("t", np.ones(3, np.float32), GgmlType.F32)
    with pytest.raises(UsageError):
        wrong(w)
    w.close()
    with open_gguf(tmp_path / "m.gguf") as g:
        assert list(g.tensors) == ["t"]


def fail_with(error: BaseException):  # type: ignore[no-untyped-def]
    def data() -> np.ndarray:
        raise error

    return data


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), DoesNotFitError),
        (PermissionError(13, "Permission denied"), EdgerunError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_a_failed_write_leaves_nothing_and_keeps_what_was(
    tmp_path: Path, error: BaseException, expected: type[BaseException]
) -> None:
    path = write_small(tmp_path / "m.gguf")
    before = path.read_bytes()
    with pytest.raises(expected), GgufWriter(path, "llama") as w:
        w.add_tensor("a", np.ones((4, 8), np.float32), GgmlType.F32)
        w.add_tensor("b", fail_with(error), GgmlType.F32, (4, 8))
    assert path.read_bytes() == before
    assert files_in(tmp_path) == [path]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import GgmlType, GgufWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with GgufWriter(sys.argv[1], "llama") as w:
        w.add_tensor("a", np.ones((64, 1024), np.float32), GgmlType.F32)
except DoesNotFitError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_real_write_that_fails_half_way(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "m.gguf")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "the disk is full" in out
    assert "262144 bytes" in out
    assert not files_in(tmp_path)


def test_an_abandoned_writer_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add("x", 1 // 0)
    assert not files_in(tmp_path)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_lazy_data_of_another_size_is_an_error(tmp_path: Path, n_rows: int) -> None:
    with pytest.raises(UsageError, match="needs 64 bytes"), GgufWriter(tmp_path / "m.gguf", "llama") as w:
        w.add_tensor("a", lambda: np.ones((n_rows, 8), np.float32), GgmlType.F32, (2, 8))
    assert not files_in(tmp_path)


def test_a_large_vocabulary_opens_fast_and_lazily(tmp_path: Path) -> None:
    import time
    import tracemalloc

    path = tmp_path / "m.gguf"
    with GgufWriter(path, "llama") as w:
        w.add("tokenizer.ggml.tokens", [f"token{i}é" for i in range(152_000)])
        w.add("tokenizer.ggml.merges", [f"to ken{i}" for i in range(152_000)])
    times_s = []
    for _ in range(3):
        start = time.perf_counter()
        open_gguf(path).close()
        times_s.append(time.perf_counter() - start)
    assert min(times_s) < 0.3, f"opening took {min(times_s):.3f} s"
    tracemalloc.start()
    try:
        with open_gguf(path) as g:
            _, peak_bytes = tracemalloc.get_traced_memory()
            assert g.metadata["tokenizer.ggml.tokens"][151_999] == "token151999é"
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20, "opening decoded the vocabulary"
