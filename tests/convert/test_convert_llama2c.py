"""llama2.c checkpoints -> GGUF."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgerun.convert import convert_checkpoint
from edgerun.errors import FormatError, NotFoundError, UsageError
from edgerun.formats.gguf import GgmlType, GgufFile, open_gguf
from edgerun.formats.llama2c import open_llama2c

SHARED = Path(__file__).parents[3] / "shared" / "data" / "weights"
DIM, FF, LAYERS, HEADS, KV, VOCAB, SEQ = 16, 24, 2, 4, 2, 262, 8


def write_checkpoint(path: Path, own_head: bool = False) -> Path:
    kv = KV * DIM // HEADS
    layer = DIM + DIM * DIM + 2 * kv * DIM + DIM * DIM + DIM + 3 * FF * DIM
    count = VOCAB * DIM + LAYERS * layer + DIM + SEQ * (DIM // HEADS) + (VOCAB * DIM if own_head else 0)
    header = (DIM, FF, LAYERS, HEADS, KV, -VOCAB if own_head else VOCAB, SEQ)
    weights = np.random.default_rng(5).standard_normal(count).astype(np.float32)
    path.write_bytes(struct.pack("<7i", *header) + weights.tobytes())
    return path


def write_tokenizer(path: Path) -> Path:
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % byte for byte in range(256)]
    texts += [b" a", b"b\xe2\x80\x8a", b"\xff"]
    data = struct.pack("<i", 6)
    for number, text in enumerate(texts):
        data += struct.pack("<fi", -float(number), len(text)) + text
    path.write_bytes(data)
    return path


def f32(g: GgufFile, name: str) -> np.ndarray:
    return g.raw(name).view("<f4").reshape(g.tensors[name].shape)


@pytest.mark.parametrize("own_head", [False, True])
def test_every_weight_arrives(tmp_path: Path, own_head: bool) -> None:
    source = write_checkpoint(tmp_path / "m.bin", own_head)
    write_tokenizer(tmp_path / "tokenizer.bin")
    report = convert_checkpoint(source, tmp_path / "m.gguf")
    weights = open_llama2c(source).weights
    with open_gguf(tmp_path / "m.gguf") as g:
        assert (f32(g, "token_embd.weight") == weights["tok_embeddings"].array()).all()
        assert (f32(g, "output_norm.weight") == weights["norm"].array()).all()
        assert ("output.weight" in g.tensors) == own_head
        if own_head:
            assert (f32(g, "output.weight") == weights["output"].array()).all()
        names = {
            "attention_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v",
            "wo": "attn_output", "ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
        }  # fmt: skip
        for layer in range(LAYERS):
            for theirs, ours in names.items():
                assert (f32(g, f"blk.{layer}.{ours}.weight") == weights[theirs].array()[layer]).all()
        assert len(g.tensors) == 2 + 9 * LAYERS + own_head == report.n_tensors
        assert report.types == {"F32": report.n_tensors}
        assert report.n_bytes == g.n_bytes
        numbers = {
            "context_length": SEQ, "embedding_length": DIM, "block_count": LAYERS,
            "feed_forward_length": FF, "attention.head_count": HEADS, "attention.head_count_kv": KV,
            "rope.dimension_count": DIM // HEADS, "vocab_size": VOCAB,
        }  # fmt: skip
        assert {key: g.metadata[f"llama.{key}"] for key in numbers} == numbers


def test_the_tokenizer_is_sentencepieces(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "other.bin")
    source = write_checkpoint(tmp_path / "m.bin")
    with pytest.raises(NotFoundError, match="--tokenizer"):
        convert_checkpoint(source, tmp_path / "m.gguf")
    convert_checkpoint(source, tmp_path / "m.gguf", tokenizer=tokenizer)
    with open_gguf(tmp_path / "m.gguf") as g:
        get = {key.removeprefix("tokenizer.ggml."): g.metadata[key] for key in g.metadata}
        assert get["model"] == "llama"
        assert get["tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
        assert get["tokens"][259:261] == ["\u2581a", "b\u200a"]
        assert get["tokens"][261].encode("utf-8", "surrogateescape") == b"\xff"
        assert get["token_type"][[0, 1, 2, 3, 258, 259]].tolist() == [2, 3, 3, 6, 6, 1]
        assert get["scores"].tolist() == [-float(n) for n in range(VOCAB)]
        assert (get["bos_token_id"], get["eos_token_id"], get["unknown_token_id"]) == (1, 2, 0)
        assert get["add_bos_token"] is True
        assert get["add_space_prefix"] is True


def test_errors(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m.bin")
    tokenizer = write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    with pytest.raises(FormatError, match="claims 1 bytes"):
        convert_checkpoint(source, tmp_path / "m.gguf")
    source.write_bytes(source.read_bytes()[:-4])
    with pytest.raises(FormatError, match="this header has"):
        convert_checkpoint(source, tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="a directory"):
        convert_checkpoint(source, tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UsageError, match="edgerun quantize"):
        convert_checkpoint(tmp_path / "x.gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_quantised(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m.bin")
    write_tokenizer(tmp_path / "tokenizer.bin")
    report = convert_checkpoint(source, tmp_path / "m.gguf", quant=GgmlType.Q8_0)
    assert {fallback.used for fallback in report.fallbacks} == {"F16"}
    assert report.types == {"F16": 1 + 7 * LAYERS, "F32": 1 + 2 * LAYERS}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/weights")
def test_real_checkpoints(tmp_path: Path) -> None:
    convert_checkpoint(SHARED / "stories260K.bin", tmp_path / "s.gguf")  # finds tok512.bin beside it
    with open_gguf(tmp_path / "s.gguf") as g:
        assert g.metadata["llama.embedding_length"] == 64
        assert g.metadata["tokenizer.ggml.tokens"][259:262] == ["\u2581t", "he", "\u2581a"]
    babyllama = SHARED / "babyllama105"
    convert_checkpoint(babyllama / "model5000.bin", tmp_path / "b.gguf", tokenizer=babyllama / "tok105.model")
    with open_gguf(tmp_path / "b.gguf") as g:
        assert g.metadata["tokenizer.ggml.tokens"][3:6] == ["\u2581", "e", "a"]
        assert g.metadata["llama.vocab_size"] == 105


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/weights")
def test_both_kinds_of_tokenizer_file_agree(tmp_path: Path) -> None:
    made = []
    for tokenizer in ("tok512.bin", "tok512.model"):
        out = tmp_path / f"{tokenizer}.gguf"
        convert_checkpoint(SHARED / "stories260K.bin", out, tokenizer=SHARED / tokenizer)
        with open_gguf(out) as g:
            made.append({key: np.asarray(g.metadata[key]).tolist() for key in g.metadata})
    assert made[0] == made[1]
