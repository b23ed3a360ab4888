"""Tokenizers from files: by path, from an opened file, from metadata."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgerun.errors import NotFoundError
from edgerun.formats.gguf import GgufWriter, open_gguf
from edgerun.text import load_chat_template, load_tokenizer

from .vocabularies import bpe, sentencepiece

TEXT = "hello wörld <|end|> 😀"


def write(path: Path, metadata) -> Path:
    with GgufWriter(path, "llama") as writer:
        for key, value in metadata.items():
            writer.add(key, value)
    return path


@pytest.mark.parametrize("make", [bpe, sentencepiece])
def test_a_path_a_file_and_its_metadata_are_the_same(make, tmp_path):
    metadata = make(add_bos_token=True) | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    path = write(tmp_path / "vocab.gguf", metadata)
    expected = load_tokenizer(metadata).encode(TEXT)
    assert load_tokenizer(path).encode(TEXT) == expected
    assert load_tokenizer(str(path)).encode(TEXT) == expected
    with open_gguf(path) as gguf:
        from_file, from_metadata = load_tokenizer(gguf), load_tokenizer(gguf.metadata)
        template = load_chat_template(gguf.metadata, from_file)
    assert from_file.encode(TEXT) == from_metadata.encode(TEXT) == expected  # the file may be closed by now
    assert template.render([{"role": "user", "content": "x"}]) == "x"


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        load_tokenizer(tmp_path / "none.gguf")


def test_heavy_libraries_are_loaded_when_they_are_needed():
    code = "import edgerun.text, sys; print([m for m in ('jinja2', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
