"""Tokenizers and chat templates from GGUF metadata, and text as tokens arrive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.text.streaming import StreamDecoder
from edgerun.text.template import ChatTemplate, load_chat_template
from edgerun.text.tokenizer import Tokenizer
from edgerun.text.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from edgerun.formats.gguf import GgufFile

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "load_chat_template", "load_tokenizer"]


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
