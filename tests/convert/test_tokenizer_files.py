"""SentencePiece models, tokenizer.json of both kinds, and the names of pre-tokenizers."""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.convert import convert_checkpoint
from edgerun.convert.hf_pretokenizer import pretokenizer_name
from edgerun.convert.hf_tokenizer import read_hf_tokenizer
from edgerun.convert.sentencepiece import read_sentencepiece
from edgerun.convert.vocabulary import TokenType
from edgerun.errors import EdgerunError, FormatError, NotFoundError, UnsupportedError
from edgerun.formats.gguf import open_gguf
from edgerun.text import load_tokenizer
from tests.convert.hf_checkpoint import write_checkpoint

SHARED = Path(__file__).parents[3] / "shared" / "data"


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float, type_: int | None = None) -> bytes:
    body = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return message(1, body + (b"" if type_ is None else varint(3 << 3) + varint(type_)))


def sentencepiece(kind: int = 2, dummy_prefix: bool = True) -> bytes:
    pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("<0x00>", 0, 6)
    pieces += piece("\u2581a", -1) + piece("b", -2.5) + piece("<x>", 0, 4)
    trainer = varint(3 << 3) + varint(kind) + varint(43 << 3) + varint(-1)
    normalizer = varint(3 << 3) + varint(dummy_prefix)
    return pieces + message(2, trainer) + message(3, normalizer)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_a_sentencepiece_model(tmp_path: Path, dummy_prefix: bool) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(dummy_prefix=dummy_prefix))
    vocabulary = read_sentencepiece(tmp_path / "tokenizer.model")
    assert vocabulary.tokens == ["<unk>", "<s>", "</s>", "<0x00>", "\u2581a", "b", "<x>"]
    assert vocabulary.types == [2, 3, 3, 6, 1, 1, 4]
    assert vocabulary.scores == [0, 0, 0, 0, -1, -2.5, 0]
    assert vocabulary.special == {"unknown": 0, "bos": 1, "eos": 2}
    assert vocabulary.add_space_prefix is dummy_prefix


def test_sentencepiece_models_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(NotFoundError):
        read_sentencepiece(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="no pieces"):
        read_sentencepiece(path)
    path.write_bytes(sentencepiece(kind=1))
    with pytest.raises(UnsupportedError, match="unigram"):
        read_sentencepiece(path)
    path.write_bytes(message(1, b"abc")[:-1])
    with pytest.raises(FormatError, match="runs past the end"):
        read_sentencepiece(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(FormatError, match="does not end"):
        read_sentencepiece(path)
    path.write_bytes(piece("a", 0, 99))
    with pytest.raises(FormatError, match="unknown type 99"):
        read_sentencepiece(path)


def test_mutated_sentencepiece_models_give_typed_errors(tmp_path: Path) -> None:
    whole, rng, good = sentencepiece(), random.Random(4), 0
    for _ in range(1500):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "m.model").write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            read_sentencepiece(tmp_path / "m.model")
            good += 1
        except EdgerunError:
            continue
    assert 0 < good < 1400


def write(folder: Path, tokenizer: dict[str, Any], **settings: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


SPM_STYLE: dict[str, Any] = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
    "post_processor": {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]},
    "added_tokens": [{"id": 7, "content": "<|end|>", "special": True}, {"id": 8, "content": "a\u2581b"}],
    "model": {
        "type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "ba": 5, "ab": 6},
        "merges": ["a b", "b a"],
    },
}  # fmt: skip


def test_a_tokenizer_json_with_byte_fallback_is_a_llama_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, SPM_STYLE, bos_token="<s>", unk_token="<unk>")
    vocabulary = read_hf_tokenizer(tmp_path, "llama", {"eos_token_id": 7})
    assert vocabulary.model == "llama"
    assert vocabulary.types == [2, 1, 6, 1, 1, 1, 1, 3, 4]
    assert vocabulary.tokens[7:] == ["<|end|>", "a b"]
    assert vocabulary.scores is not None
    assert vocabulary.scores[6] > vocabulary.scores[5] > vocabulary.scores[3], "the first merge comes first"
    assert vocabulary.special == {"bos": 1, "unknown": 0, "eos": 7}
    assert vocabulary.add_bos is True
    assert vocabulary.add_space_prefix is True


def test_a_tokenizer_model_is_preferred_and_gets_the_added_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece())
    write(tmp_path, SPM_STYLE, added_tokens_decoder={"9": {"content": "<late>", "special": True}})
    vocabulary = read_hf_tokenizer(tmp_path, "llama", {})
    assert vocabulary.tokens[4:] == ["\u2581a", "b", "<x>", "<|end|>", "a b", "<late>"]
    assert vocabulary.types[-1] == TokenType.CONTROL


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"type": "Unigram"}, UnsupportedError, "'Unigram'"),
        ({"vocab": {}}, FormatError, "empty"),
        ({"vocab": {"a": 0, "b": 0}}, FormatError, "same id"),
        ({"vocab": {"a": -1}}, FormatError, "small whole numbers"),
        ({"vocab": {"a": 1 << 40}}, FormatError, "small whole numbers"),
        ({"vocab": {"a": "x"}}, FormatError, "small whole numbers"),
        ({"merges": None}, FormatError, "lacks vocab or merges"),
        ({"merges": ["abc"]}, FormatError, "not a merge"),
        ({"merges": [[1, 2]]}, FormatError, "not a merge"),
    ],
)
def test_tokenizer_json_that_cannot_be(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    write(tmp_path, {**SPM_STYLE, "model": SPM_STYLE["model"] | change})
    with pytest.raises(error, match=text):
        read_hf_tokenizer(tmp_path, "llama", {})


def test_an_added_token_far_away(tmp_path: Path) -> None:
    write(tmp_path, {**SPM_STYLE, "added_tokens": [{"id": 1 << 30, "content": "x"}]})
    with pytest.raises(FormatError, match="impossible id"):
        read_hf_tokenizer(tmp_path, "llama", {})


@pytest.mark.parametrize("place", ["vocab", "merges", "added_tokens", "template"])
def test_half_a_character_is_refused(tmp_path: Path, place: str) -> None:
    """JSON can spell a lone surrogate; a GGUF cannot hold one."""
    write_checkpoint(tmp_path / "model", "qwen3")
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    if place == "vocab":
        tokenizer["model"]["vocab"]["\ud800"] = 46
    elif place == "merges":
        tokenizer["model"]["merges"].append(["\ud800", "!"])
    elif place == "added_tokens":
        tokenizer["added_tokens"].append({"id": 46, "content": "\ud800", "special": True})
    else:
        path = path.with_name("tokenizer_config.json")
        tokenizer = {**json.loads(path.read_text()), "chat_template": "{{ messages }}\ud800"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(FormatError, match="no Unicode"):
        convert_checkpoint(tmp_path / "model", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_tokens_that_must_never_be_chosen(tmp_path: Path) -> None:
    """As the file says it that transformers generates by, and as the engine reads them."""
    folder = tmp_path / "model"
    write_checkpoint(folder, "qwen3")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({"suppress_tokens": [7, 5, 100_000]}))
    convert_checkpoint(folder, tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf") as gguf:
        kept = gguf.metadata["tokenizer.ggml.suppress_tokens"]
        assert (kept.dtype, kept.tolist()) == (np.int32, [5, 7])
        assert load_tokenizer(gguf).suppressed_ids == {5, 7}
    settings.write_text(json.dumps({"suppress_tokens": None}))
    assert not read_hf_tokenizer(folder, "qwen3", {}).suppressed
    settings.write_text(json.dumps({"suppress_tokens": ["5"]}))
    with pytest.raises(FormatError, match="suppress_tokens"):
        read_hf_tokenizer(folder, "qwen3", {})


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    write(tmp_path, SPM_STYLE)
    vocabulary = read_hf_tokenizer(tmp_path, "llama", {})
    assert vocabulary.resize(8) == ["a b"]
    with pytest.raises(FormatError, match="do not belong together"):
        vocabulary.resize(5)


def split(pattern: str) -> dict[str, Any]:
    steps = [{"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel", "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}
BYTE_LEVEL = {"type": "ByteLevel", "use_regex": True}


@pytest.mark.parametrize(
    ("pre", "architecture", "name"),
    [
        (split(LLAMA3), "llama", "llama-bpe"),
        (split(LLAMA3.replace("{1,3}", "")), "qwen2", "qwen2"),
        (BYTE_LEVEL, "llama", "gpt-2"),
        ({"type": "ByteLevel"}, "olmoe", "olmo"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, "llama", "smollm"),
    ],
)
def test_pretokenizers_have_names(pre: dict[str, Any], architecture: str, name: str) -> None:
    assert pretokenizer_name(pre, architecture, "here") == name


@pytest.mark.parametrize("pre", [None, split("x+"), {"type": "Whitespace"}, {"type": "ByteLevel", "use_regex": False}])
def test_unknown_pretokenizers_are_refused(pre: Any) -> None:
    with pytest.raises(UnsupportedError, match="no name for this pre-tokenizer"):
        pretokenizer_name(pre, "llama", "here")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_phi3_from_json_agrees_with_llama_cpps_file(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((SHARED / "tokenizers" / f"phi3_{name}").read_bytes())
    vocabulary = read_hf_tokenizer(tmp_path, "phi3", {})
    with open_gguf(SHARED / "vocab" / "ggml-vocab-phi-3.gguf") as g:
        theirs, types = g.metadata["tokenizer.ggml.tokens"], g.metadata["tokenizer.ggml.token_type"]
        scores = g.metadata["tokenizer.ggml.scores"]
        assert vocabulary.tokens[:32011] == theirs[:32011]  # later ones differ between revisions of the model
        assert vocabulary.types[1:32011] == types[1:32011].tolist()
        merged = [i for i in range(3, 32000) if types[i] == 1 and len(theirs[i]) > 1]
        assert vocabulary.scores is not None
        ours = np.asarray(vocabulary.scores)[merged]
        assert (np.argsort(-ours, kind="stable") == np.argsort(-scores[merged], kind="stable")).all()
        for name in ("bos", "eos", "unknown", "padding"):
            assert vocabulary.special[name] == g.metadata[f"tokenizer.ggml.{name}_token_id"]
        assert vocabulary.add_bos is g.metadata["tokenizer.ggml.add_bos_token"]
    assert "<|assistant|>" in vocabulary.templates[""]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("file", "architecture", "name", "n_tokens"),
    [
        ("smollm2_tokenizer.json", "llama", "smollm", 49152),
        ("allenai_gpt-neox-olmo-dolma-v1_5.json", "olmoe", "olmo", 50280),
        ("minimind_tokenizer.json", "llama", "gpt-2", 6400),
    ],
)
def test_real_byte_level_tokenizers(file: str, architecture: str, name: str, n_tokens: int) -> None:
    vocabulary = read_hf_tokenizer(SHARED / "tokenizers" / file, architecture, {})
    assert (vocabulary.model, vocabulary.pre, len(vocabulary.tokens)) == ("gpt2", name, n_tokens)
    assert vocabulary.merges is not None
    assert all(merge.count(" ") == 1 for merge in vocabulary.merges)


def test_tiktoken_vocabulary_becomes_merges(tmp_path: Path) -> None:
    """Kimi's: a token's last merge is that of the two parts that lower numbers make of it."""
    tokens = [bytes([byte]) for byte in b"abc \xc3\xa9"] + [b"ab", b"bc", b"abc", "é".encode(), b" abc"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    added = {str(len(tokens)): {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "added_tokens_decoder": added})
    )
    found = read_hf_tokenizer(tmp_path, "deepseek2", {})
    assert (found.model, found.pre) == ("gpt2", "kimi-k2")
    assert found.tokens == ["a", "b", "c", "Ġ", "Ã", "©", "ab", "bc", "abc", "Ã©", "Ġabc", "<|im_end|>"]
    assert found.merges == ["a b", "b c", "ab c", "Ã ©", "Ġ abc"]
    assert found.special["eos"] == 11
    for bad in (b"YQ== one", b"YQ 0", b"YQ== 0\nYQ== 1", b"YQ== 0\nYg== 0", b"YQ== 99999", b""):
        (tmp_path / "tiktoken.model").write_bytes(bad)
        with pytest.raises(FormatError):
            read_hf_tokenizer(tmp_path, "deepseek2", {})
