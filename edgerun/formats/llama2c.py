"""Read llama2.c checkpoints and tokenizers. Source: karpathy/llama2.c, export.py, run.c, tokenizer.py.

Legacy checkpoints: seven i32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a
negative vocab_size means a head of its own), then f32 weights, every kind for all layers at once. Version 1
has the magic "ak42", a 256-byte header, no RoPE tables and the norms in front. Version 2 (int8) is not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, NotFoundError, UnsupportedError
from edgerun.formats.file_bytes import FileBytes

_MAGIC = 0x616B3432
_LIMITS = {
    "dim": 1 << 17, "hidden_dim": 1 << 20, "n_layers": 4096, "n_heads": 4096, "n_kv_heads": 4096,
    "vocab_size": 1 << 22, "seq_len": 1 << 24,
}  # fmt: skip
_MAX_TOKEN_BYTES = 1 << 16


@dataclass(frozen=True)
class Llama2cConfig:
    """The header's numbers."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared_head: bool
    version: int = 0

    @property
    def head_dim(self) -> int:
        """Numbers of one attention head."""
        return self.dim // self.n_heads


@dataclass(frozen=True)
class Llama2cTensor:
    """One kind of weights, of all layers, where it lies in the file."""

    file: FileBytes
    offset: int
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of it seen as (all leading dimensions, cols): (stop - start, cols) f32. ReadError when the file was cut
        or changed since it was opened."""
        cols = self.shape[-1]
        raw = self.file.read(self.offset + 4 * start * cols, 4 * (stop - start) * cols)
        return np.frombuffer(raw, "<f4").reshape(stop - start, cols)

    def array(self) -> NDArray[np.float32]:
        """All of it."""
        return self.rows(0, prod(self.shape[:-1])).reshape(self.shape)


@dataclass(frozen=True)
class Llama2cCheckpoint:
    """Config, and the weights by llama2.c's names (tok_embeddings, wq, ...), shaped (n_layers, ...); tok_embeddings
    (vocab, dim), norm (dim,), output (vocab, dim) if it has its own."""

    config: Llama2cConfig
    weights: dict[str, Llama2cTensor]


def open_llama2c(path: str | Path) -> Llama2cCheckpoint:
    """Open a checkpoint. NotFoundError; FormatError: a header without sense, or of another size;
    UnsupportedError: an int8 checkpoint."""
    path = Path(path)
    file = FileBytes(path)
    head, size = file.read(0, min(256, file.size)), file.size
    if len(head) < 28:
        raise FormatError(f"{path}: {len(head)} bytes are too few for a llama2.c header")
    config, start = _read_config(path, head)
    layout = _layout(config)
    expected = start + 4 * sum(prod(shape) for _, shape in layout)
    if size != expected:
        raise FormatError(f"{path}: {size} bytes, a llama2.c checkpoint with this header has {expected}: {config}")
    weights = {}
    for name, shape in layout:
        weights[name] = Llama2cTensor(file, start, shape)
        start += 4 * prod(shape)
    return Llama2cCheckpoint(config, weights)


def _read_config(path: Path, head: bytes) -> tuple[Llama2cConfig, int]:
    magic, version = struct.unpack_from("<Ii", head)
    if magic == _MAGIC:
        if version != 1 or len(head) < 256:
            raise UnsupportedError(
                f"{path}: a llama2.c checkpoint of version {version}; edgerun reads the f32 versions 0 and 1"
            )
        numbers = list(struct.unpack_from("<7i", head, 8))
        shared, start = head[36] != 0, 256
    else:
        numbers = list(struct.unpack_from("<7i", head))
        shared, start, version = numbers[5] > 0, 28, 0
        numbers[5] = abs(numbers[5])
    for (name, most), number in zip(_LIMITS.items(), numbers, strict=True):
        if not 1 <= number <= most:
            raise FormatError(f"{path}: not a llama2.c checkpoint: {name} is {number}, not 1 to {most}")
    config = Llama2cConfig(**dict(zip(_LIMITS, numbers, strict=True)), shared_head=shared, version=version)
    if config.dim % config.n_heads or config.head_dim % 2 or config.n_heads % config.n_kv_heads:
        raise FormatError(
            f"{path}: not a llama2.c checkpoint: dim {config.dim}, {config.n_heads} heads and "
            f"{config.n_kv_heads} key heads do not divide evenly"
        )
    return config, start


def _layout(c: Llama2cConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in file order."""
    layers, kv_dim = c.n_layers, c.n_kv_heads * c.head_dim
    embeddings = ("tok_embeddings", (c.vocab_size, c.dim))
    att_norm, ffn_norm = ("attention_norm", (layers, c.dim)), ("ffn_norm", (layers, c.dim))
    attention = [
        ("wq", (layers, c.dim, c.dim)),
        ("wk", (layers, kv_dim, c.dim)),
        ("wv", (layers, kv_dim, c.dim)),
        ("wo", (layers, c.dim, c.dim)),
    ]
    ffn = [
        ("w1", (layers, c.hidden_dim, c.dim)),
        ("w2", (layers, c.dim, c.hidden_dim)),
        ("w3", (layers, c.hidden_dim, c.dim)),
    ]
    norm = ("norm", (c.dim,))
    head = [] if c.shared_head else [("output", (c.vocab_size, c.dim))]
    if c.version == 1:
        return [att_norm, ffn_norm, norm, embeddings, *attention, *ffn, *head]
    tables = [("freq_cos", (c.seq_len, c.head_dim // 2)), ("freq_sin", (c.seq_len, c.head_dim // 2))]
    return [embeddings, att_norm, *attention, ffn_norm, *ffn, norm, *tables, *head]


def read_llama2c_tokenizer(path: str | Path, vocab_size: int) -> list[tuple[bytes, float]]:
    """The (bytes, score) of each token of a tokenizer.bin: i32 longest; f32 score, i32 length, bytes of each.

    FormatError when it is truncated or does not hold exactly `vocab_size` tokens.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file")
    data = path.read_bytes() if path.stat().st_size < 1 << 28 else b""
    position, tokens = 4, []
    for number in range(vocab_size):
        if position + 8 > len(data):
            raise FormatError(f"{path}: byte {position}: ends after {number} tokens, the model has {vocab_size}")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 <= length <= min(_MAX_TOKEN_BYTES, len(data) - position):
            raise FormatError(f"{path}: byte {position - 4}: token {number} claims {length} bytes")
        tokens.append((data[position : position + length], float(score)))
        position += length
    if position != len(data):
        raise FormatError(f"{path}: byte {position}: more tokens than the model's {vocab_size}")
    return tokens
