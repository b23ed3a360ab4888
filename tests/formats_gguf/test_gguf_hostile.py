"""Malformed and hostile files: a typed error with the byte, before anything large is allocated."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.errors import EdgerunError, FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufWriter, ValueKind, open_gguf

HUGE = (1 << 64) - 1


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], type_: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, type_, offset)


def build(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    data: int = 0,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> bytes:
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    body = head + b"".join(pairs) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + bytes(data)


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


ALIGN = "general.alignment"
CASES: dict[str, tuple[bytes, str]] = {
    "magic": (build(magic=b"GGML"), "begins with b'GGML'"),
    "three bytes": (b"GGU", "begins with b'GGU'"),
    "no version": (b"GGUF", "byte 4: the version needs 4 bytes"),
    "version 9": (build(version=9), "version 9"),
    "counts missing": (b"GGUF" + struct.pack("<I", 3), "tensor count"),
    "n_kv huge": (build(n_pairs=HUGE), "metadata keys"),
    "n_tensors huge": (build(n_tensors=HUGE), "tensors cannot"),
    "n_tensors more than bytes": (build(tensors=(tensor("a", [1]),), n_tensors=9), "tensors cannot"),
    "key length huge": (build((text("k", HUGE) + bytes(16),)), "a metadata key is"),
    "key past the end": (build((text("k", 5000) + bytes(16),)), "needs 5000 bytes"),
    "key not utf-8": (build((text(b"\xff\xfe") + struct.pack("<IB", 0, 1) + bytes(16),)), "not UTF-8"),
    "key twice": (build((pair("k", 0, b"\1"), pair("k", 0, b"\1"))), "'k' stands twice"),
    "unknown kind": (build((pair("k", 13, bytes(16)),)), "unknown kind 13"),
    "string past the end": (build((pair("k", 8, text("v", 1 << 40)),)), "needs 1099511627776 bytes"),
    "array past the end": (build((pair("k", 9, array(6, 1 << 61)),)), "k needs"),
    "array count huge": (build((pair("k", 9, array(12, HUGE)),)), "k needs"),
    "strings past the end": (build((pair("k", 9, array(8, 6, text("a" * 40))),), data=0), "runs past "
    "the end"),
    "string item huge": (build((pair("k", 9, array(8, 2, text("a", HUGE) + text("b"))),)), "runs "
    "past the end"),
    "last string huge": (build((pair("k", 9, array(8, 1, text("a", HUGE))),)), "runs past the end"),
    "strings huge count": (build((pair("k", 9, array(8, HUGE)),)), "strings"),
    "strings many": (build((pair("k", 9, array(8, 1000)),), data=64), "claims 1000 strings"),
    "array of unknown": (build((pair("k", 9, array(77, 1)),)), "unknown kind 77"),
    "alignment 3": (build((pair(ALIGN, 4, struct.pack("<I", 3)),)), "is 3, not a power of two"),
    "alignment 0": (build((pair(ALIGN, 4, struct.pack("<I", 0)),)), "is 0, not a power"),
    "alignment huge": (build((pair(ALIGN, 4, struct.pack("<I", 1 << 31)),)), "not a power of two up to"),
    "alignment a string": (build((pair(ALIGN, 8, text("32")),)), "not a 32-bit number"),
    "name too long": (build((), (tensor("n" * 2000, [1]),)), "a tensor name is 2000"),
    "no dims": (build((), (tensor("a", []),), data=64), "0 dimensions"),
    "five dims": (build((), (tensor("a", [1] * 5),), data=64), "5 dimensions"),
    "many dims": (build((), (tensor("a", [1], n_dims=1 << 31),), data=64), "dimensions"),
    "zero dim": (build((), (tensor("a", [4, 0]),), data=64), "impossible shape"),
    "overflowing dims": (build((), (tensor("a", [1 << 32, 1 << 32]),), data=64), "impossible shape"),
    "dims to zero mod 2^64": (build((), (tensor("a", [1 << 63, 2, 1, 1]),), data=64), "impossible shape"),
    "half a block": (build((), (tensor("a", [33], 2),), data=64), "not a multiple of Q4_0's block"),
    "offset off": (build((), (tensor("a", [1], 0, 8),), data=64), "not a multiple of 32"),
    "offset huge": (build((), (tensor("a", [1], 0, 1 << 63),), data=64), "it is truncated"),
    "data missing": (build((), (tensor("a", [1000]),), data=64), "it is truncated"),
    "name twice": (build((), (tensor("a", [1]), tensor("a", [1], 0, 32)), data=64), "'a' stands twice"),
    "Q2_0 cut": (build((), (tensor("a", [4096], 42),), data=1000), "it is truncated"),
    "overlap": (build((), (tensor("a", [16]), tensor("b", [8], 0, 32)), data=64), "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_malformed(tmp_path: Path, case: str) -> None:
    data, message = CASES[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_gguf(path)
    assert message in str(caught.value)
    assert "byte " in str(caught.value)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (build(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (build((), (tensor("a", [256], 36),), data=64), "IQ4_NL_4_4"),
        (build((), (tensor("a", [256], 31),), data=64), "Q4_0_4_4"),
        (build((), (tensor("a", [2048, 4], 42),), data=2048 // 128 * 34 * 4), "Q2_0 in blocks of 128"),
        (
            build((), (tensor("a", [4096], 42), tensor("b", [8], 0, 1088)), data=1088 + 32),
            "'a' is Q2_0 in blocks of 128",
        ),
        (build((), (tensor("a", [256], 1000),), data=64), "1000"),
        (build((pair("k", 9, array(9, 1, array(0, 1))),)), "array of arrays"),
    ],
)
def test_unsupported(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match=message):
        open_gguf(path)


def test_a_bool_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build((pair("k", 7, b"\2"), pair("ks", 9, array(7, 2, b"\1\3")))))
    with open_gguf(path) as g:
        for key in ("k", "ks"):
            with pytest.raises(FormatError, match="not 0 or 1"):
                _ = g.metadata[key]


def sample(path: Path) -> bytes:
    """A small valid file with a bit of everything."""
    with GgufWriter(path, "llama") as w:
        for kind in ValueKind:
            if kind not in (ValueKind.STRING, ValueKind.ARRAY):
                w.add(f"scalar.{kind.name}", kind is ValueKind.BOOL or 1, kind)
        w.add("text", "abc")
        w.add("words", ["a", "bc", "def"])
        w.add("numbers", [1.0, 2.0])
        w.add("general.alignment", 32, ValueKind.UINT32)
        w.add_tensor("a.weight", np.ones((2, 32), np.float32), GgmlType.F32)
        w.add_tensor("b.weight", np.ones((2, 18), np.uint8), GgmlType.Q4_0)
    return path.read_bytes()


def use_all(path: Path) -> None:
    with open_gguf(path) as g:
        for key in g.metadata:
            _ = g.metadata[key]
        for name, info in g.tensors.items():
            assert g.raw(name).nbytes == info.n_bytes
        _ = g.architecture


def survives(path: Path, data: bytes) -> bool:
    """Opening and reading everything succeeds, or fails with an EdgerunError."""
    path.write_bytes(data)
    try:
        use_all(path)
    except EdgerunError:
        return False
    return True


INTERESTING = [0, 1, 2, 3, 7, 8, 9, 0x7F, 0x80, 0xFF]


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice(INTERESTING)
            case 2:
                del changed[at : at + rng.randrange(1, 16)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 16))
            case 4:
                value = rng.choice((HUGE, 1 << 63, 1 << 32, 1 << 31, (1 << 63) - 1, len(data)))
                changed[at : at + 8] = struct.pack("<Q", value)
            case _:
                changed[at : at + 4] = struct.pack("<I", rng.choice((0, 1 << 31, 0xFFFFFFFF, 9, 13)))
        if not changed:
            break
    return bytes(changed)


def test_thousands_of_mutations_give_typed_errors_and_little_memory(tmp_path: Path) -> None:
    data = sample(tmp_path / "m.gguf")
    assert survives(tmp_path / "m.gguf", data)
    rng = random.Random(20)
    results = []
    tracemalloc.start()
    try:
        for _ in range(4000):
            tracemalloc.reset_peak()
            results.append(survives(tmp_path / "m.gguf", mutate(data, rng)))
            peak_bytes = tracemalloc.get_traced_memory()[1]
            assert peak_bytes < 4 << 20
    finally:
        tracemalloc.stop()
    assert 200 < sum(results) < 3800, "the mutations should both break files and leave some whole"


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = sample(tmp_path / "m.gguf")
    end = 0
    with open_gguf(tmp_path / "m.gguf") as g:
        end = max(info.offset + info.n_bytes for info in g.tensors.values())
    for length in range(end):
        (tmp_path / "m.gguf").write_bytes(data[:length])
        with pytest.raises(FormatError):
            open_gguf(tmp_path / "m.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_arbitrary_bytes_behind_a_valid_start(tmp_path: Path, junk: bytes, n_pairs: int, n_tensors: int) -> None:
    survives(tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + junk)
