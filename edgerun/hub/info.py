"""What a model file says about itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.formats.gguf.types import FILE_TYPES, GUESSED_FILE_TYPE
from edgerun.formats.packfile import pack_path, read_header
from edgerun.weights.identity import file_stamp


@dataclass(frozen=True)
class PackInfo:
    """The pack file beside a model. `digest`: of the content of the model that it was made from; `current`: that was
    this file, going by its size, time and inode."""

    path: Path
    layout: str
    n_bytes: int
    digest: str
    current: bool


@dataclass(frozen=True)
class ModelInfo:
    """Read from a GGUF's header; None where it does not say."""

    path: Path
    name: str | None
    architecture: str
    parameters: int
    n_bytes: int
    quantisation: str  # what the file was made as ("Q4_K_M"), or the type that most of its bytes are of
    types: Mapping[str, int]  # type -> number of tensors, the one with most weights first
    context_length: int | None
    embedding_length: int | None
    layers: int | None
    experts: int | None
    vocabulary: int | None
    tokenizer: str | None
    chat_template: str | None
    licence: str | None
    pack: PackInfo | None = None


def show(path: Path) -> ModelInfo:
    """Open a GGUF and describe it. NotFoundError, FormatError."""
    with open_gguf(path) as gguf:
        meta, arch = gguf.metadata, gguf.architecture
        weights: Counter[str] = Counter()
        tensors: Counter[str] = Counter()
        for info in gguf.tensors.values():
            weights[info.type.name] += prod(info.shape)
            tensors[info.type.name] += 1
        return ModelInfo(
            path=path,
            name=_text(meta.get("general.name")),
            architecture=arch,
            parameters=sum(weights.values()),
            n_bytes=gguf.n_bytes,
            quantisation=_quantisation(gguf),
            types={name: tensors[name] for name, _ in weights.most_common()},
            context_length=_number(meta.get(f"{arch}.context_length")),
            embedding_length=_number(meta.get(f"{arch}.embedding_length")),
            layers=_number(meta.get(f"{arch}.block_count")),
            experts=_number(meta.get(f"{arch}.expert_count")),
            vocabulary=_vocabulary(meta, arch),
            tokenizer=_tokenizer(meta),
            chat_template=_text(meta.get("tokenizer.chat_template")),
            licence=_text(meta.get("general.license")),
            pack=_pack(gguf),
        )


def metadata_table(path: Path, *, longest: int = 120) -> dict[str, Any]:
    """All metadata of a GGUF, arrays as `[n values]` and texts cut at `longest` characters."""
    table: dict[str, Any] = {}
    with open_gguf(path) as gguf:
        for key in gguf.metadata:
            value = gguf.metadata[key]
            if isinstance(value, str):
                table[key] = value if len(value) <= longest else value[: longest - 3] + "..."
            elif isinstance(value, (bool, int, float)):
                table[key] = value
            else:
                table[key] = f"[{len(value)} values]"
    return table


def _pack(gguf: GgufFile) -> PackInfo | None:
    path = pack_path(gguf.path)
    try:
        header = read_header(path)
    except (OSError, FormatError):
        return None  # none, or one that is passed over
    return PackInfo(path, header.layout, header.file_bytes, header.digest, header.stamp == file_stamp(gguf))


def _quantisation(gguf: GgufFile) -> str:
    """`general.file_type` where the file says one that llama.cpp has; else where its bytes are."""
    said = _number(gguf.get("general.file_type"))
    if said is not None and said & ~GUESSED_FILE_TYPE in FILE_TYPES:
        return FILE_TYPES[said & ~GUESSED_FILE_TYPE]
    n_bytes: Counter[str] = Counter()
    for info in gguf.tensors.values():
        n_bytes[info.type.name] += info.n_bytes
    return n_bytes.most_common(1)[0][0] if n_bytes else "none"


def _vocabulary(meta: Mapping[str, Any], arch: str) -> int | None:
    stated = _number(meta.get(f"{arch}.vocab_size"))
    if stated is not None or "tokenizer.ggml.tokens" not in meta:
        return stated
    return len(meta["tokenizer.ggml.tokens"])


def _tokenizer(meta: Mapping[str, Any]) -> str | None:
    kind, pre = _text(meta.get("tokenizer.ggml.model")), _text(meta.get("tokenizer.ggml.pre"))
    return kind if kind is None or pre is None else f"{kind} ({pre})"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def has_chat_template(path: Path) -> bool:
    """Whether the model was made to chat; others continue texts."""
    with open_gguf(path) as gguf:
        return bool(gguf.metadata.get("tokenizer.chat_template"))
