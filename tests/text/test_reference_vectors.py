"""llama.cpp's own test vectors for real vocabularies, where they lie beside the repository."""

from pathlib import Path

import pytest

from edgerun.text import load_tokenizer

VOCAB = Path(__file__).parents[3] / "shared" / "data" / "vocab"
NAMES = sorted(path.name.removesuffix(".gguf.inp") for path in VOCAB.glob("*.gguf.inp"))

pytestmark = pytest.mark.skipif(not NAMES, reason="reference vocabularies (../shared/data/vocab) are absent")


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_llama_cpp(name):
    model = VOCAB / f"{name}.gguf"
    if not model.exists():
        pytest.skip(f"{model.name} itself is absent, there are only its vectors")
    tokenizer = load_tokenizer(model)
    texts = (VOCAB / f"{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (VOCAB / f"{name}.gguf.out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text, add_special=False)
        assert ids == [int(word) for word in line.split()], text
        assert tokenizer.decode(ids) == text
