"""llama2.c checkpoints and tokenizers: layouts, and headers that lie."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import FormatError, NotFoundError, UnsupportedError
from edgerun.formats.llama2c import open_llama2c, read_llama2c_tokenizer

HEADER = (8, 12, 2, 2, 1, 10, 6)  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len


def n_weights(head: bool, tables: bool = True) -> int:
    attention = 8 + 64 + 32 + 32 + 64
    ffn = 8 + 3 * 96
    return 80 + 2 * (attention + ffn) + 8 + (2 * 6 * 2 if tables else 0) + (80 if head else 0)


def write(path: Path, header: tuple[int, ...] = HEADER, count: int | None = None) -> Path:
    count = n_weights(header[5] < 0) if count is None else count
    path.write_bytes(struct.pack("<7i", *header) + np.arange(count, dtype=np.float32).tobytes())
    return path


def test_a_legacy_checkpoint_in_order(tmp_path: Path) -> None:
    checkpoint = open_llama2c(write(tmp_path / "m.bin"))
    config, weights = checkpoint.config, checkpoint.weights
    assert (config.dim, config.vocab_size, config.shared_head, config.head_dim) == (8, 10, True, 4)
    assert "output" not in weights
    assert weights["tok_embeddings"].array()[0, 0] == 0
    assert weights["attention_norm"].array()[0, 0] == 80
    assert weights["wq"].array()[1, 0, 0] == 80 + 16 + 64
    assert weights["wk"].shape == (2, 4, 8)
    assert weights["w2"].shape == (2, 8, 12)
    assert weights["norm"].array()[-1] == n_weights(False) - 24 - 1


def test_a_negative_vocabulary_has_its_own_head(tmp_path: Path) -> None:
    checkpoint = open_llama2c(write(tmp_path / "m.bin", (*HEADER[:5], -10, 6)))
    assert not checkpoint.config.shared_head
    assert checkpoint.weights["output"].array()[0, 0] == n_weights(False)


def test_version_1(tmp_path: Path) -> None:
    head = struct.pack("<Ii7iB", 0x616B3432, 1, *HEADER, 1)
    data = np.arange(n_weights(False, tables=False), dtype=np.float32).tobytes()
    (tmp_path / "m.bin").write_bytes(head + bytes(256 - len(head)) + data)
    checkpoint = open_llama2c(tmp_path / "m.bin")
    assert checkpoint.config.version == 1
    assert checkpoint.weights["attention_norm"].array()[0, 0] == 0
    assert checkpoint.weights["norm"].array()[0] == 32
    assert checkpoint.weights["tok_embeddings"].array()[0, 0] == 40
    assert checkpoint.weights["w3"].array()[-1, -1, -1] == n_weights(False, tables=False) - 1


def test_version_2_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(struct.pack("<Ii7iB", 0x616B3432, 2, *HEADER, 1) + bytes(300))
    with pytest.raises(UnsupportedError, match="version 2"):
        open_llama2c(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((0, *HEADER[1:]), "dim is 0"),
        ((-8, *HEADER[1:]), "dim is -8"),
        ((1 << 30, *HEADER[1:]), "dim is 1073741824"),
        ((*HEADER[:2], 1 << 30, *HEADER[3:]), "n_layers is"),
        ((*HEADER[:5], -(1 << 31), 6), "vocab_size is"),
        ((*HEADER[:3], 3, *HEADER[4:]), "do not divide"),
        ((6, 12, 2, 2, 2, 10, 6), "do not divide"),
        ((*HEADER[:6], 7), "bytes, a llama2.c checkpoint with this header has"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: tuple[int, ...], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_llama2c(write(tmp_path / "m.bin", header, n_weights(False)))


def test_truncated(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has"):
        open_llama2c(write(tmp_path / "m.bin", count=n_weights(False) - 1))
    (tmp_path / "m.bin").write_bytes(b"short")
    with pytest.raises(FormatError, match="too few"):
        open_llama2c(tmp_path / "m.bin")
    with pytest.raises(NotFoundError):
        open_llama2c(tmp_path / "absent.bin")


def test_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    entries = [(b"a", 0.0), (b"\xe2\x80\x8a", -1.0), (b"", -2.0)]
    data = struct.pack("<i", 3) + b"".join(struct.pack("<fi", s, len(t)) + t for t, s in entries)
    path.write_bytes(data)
    assert read_llama2c_tokenizer(path, 3) == entries
    with pytest.raises(FormatError, match="ends after 3 tokens, the model has 4"):
        read_llama2c_tokenizer(path, 4)
    with pytest.raises(FormatError, match="more tokens"):
        read_llama2c_tokenizer(path, 2)
    path.write_bytes(data[:8] + struct.pack("<i", 1 << 30) + data[12:])
    with pytest.raises(FormatError, match="token 0 claims 1073741824 bytes"):
        read_llama2c_tokenizer(path, 3)
    path.write_bytes(data[:8] + struct.pack("<i", -5) + data[12:])
    with pytest.raises(FormatError, match="claims -5"):
        read_llama2c_tokenizer(path, 3)
