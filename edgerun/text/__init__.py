"""Tokenizers and chat templates from GGUF metadata, and text as tokens arrive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.text.streaming import StreamDecoder
from edgerun.text.template import DEFAULT_KEY, ChatTemplate, load_chat_template
from edgerun.text.template_process import AT_REST_BYTES
from edgerun.text.tokenizer import Tokenizer
from edgerun.text.vocabulary import read_vocabulary, vocabulary_bytes

if TYPE_CHECKING:
    from edgerun.formats.gguf import GgufFile
    from edgerun.formats.gguf.metadata import Metadata

__all__ = [
    "ChatTemplate",
    "StreamDecoder",
    "Tokenizer",
    "load_chat_template",
    "load_tokenizer",
    "text_bytes",
    "vocabulary_bytes",
]

_ORDINARY_BYTES = 40 << 20  # of growth that ordinary vocabularies have, over the time that a process runs


def text_bytes(metadata: Metadata) -> int:
    """What text takes at most beside the tokenizer as it was loaded (see `vocabulary_bytes`) and what planning leaves
    to every process: the process of the chat template, and the growth of vocabularies beyond the ordinary."""
    template = AT_REST_BYTES if DEFAULT_KEY in metadata else 0
    return template + max(0, vocabulary_bytes(metadata).later - _ORDINARY_BYTES)


def load_tokenizer(source: str | Path | GgufFile | Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF: its path, the opened file, or its metadata.

    Raises UnsupportedError for a file without a tokenizer or with one of a kind that edgerun does not run,
    FormatError for metadata that is wrong.
    """
    if isinstance(source, str | Path):
        from edgerun.formats.gguf import open_gguf

        with open_gguf(Path(source)) as gguf:
            return Tokenizer(read_vocabulary(gguf.metadata))
    metadata = source if isinstance(source, Mapping) else source.metadata
    return Tokenizer(read_vocabulary(metadata))
