"""GGUF files: read (v2 and v3, split or whole, memory-mapped) and write (v3)."""

from edgerun.formats.gguf.file import GgufFile, open_gguf
from edgerun.formats.gguf.header import TensorInfo
from edgerun.formats.gguf.metadata import Metadata, MetadataValue
from edgerun.formats.gguf.types import GgmlType, ValueKind
from edgerun.formats.gguf.writer import GgufWriter

__all__ = [
    "GgmlType",
    "GgufFile",
    "GgufWriter",
    "Metadata",
    "MetadataValue",
    "TensorInfo",
    "ValueKind",
    "open_gguf",
]
