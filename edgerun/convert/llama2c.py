"""llama2.c checkpoint -> GGUF of the llama architecture.

llama2.c rotates neighbouring pairs, as GGUF's llama does: q and k need no permutation.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from edgerun.convert.report import Report
from edgerun.convert.sentencepiece import read_sentencepiece
from edgerun.convert.target import Check
from edgerun.convert.tensors import Emitter, Source, file_type
from edgerun.convert.vocabulary import Vocabulary, llama2c_vocabulary
from edgerun.errors import NotFoundError
from edgerun.events import EventSink
from edgerun.formats.gguf import GgmlType, GgufWriter
from edgerun.formats.llama2c import Llama2cCheckpoint, Llama2cTensor, open_llama2c, read_llama2c_tokenizer

_RMS_EPS = 1e-5  # run.c, rmsnorm
_ROPE_BASE = 10000.0
_PER_LAYER = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


def convert_llama2c(
    source: Path, out: Path, *, tokenizer: Path | None, quant: GgmlType | None, check: Check, events: EventSink
) -> Report:
    """Write `source` as a GGUF. The tokenizer is the file given, or one beside the checkpoint."""
    checkpoint = open_llama2c(source)
    config = checkpoint.config
    vocabulary = _vocabulary(source, tokenizer, config.vocab_size)
    sources = _sources(checkpoint)
    with GgufWriter(out, "llama", check=check, events=events) as writer:
        writer.add("general.name", source.stem)
        writer.add("llama.context_length", config.seq_len)
        writer.add("llama.embedding_length", config.dim)
        writer.add("llama.block_count", config.n_layers)
        writer.add("llama.feed_forward_length", config.hidden_dim)
        writer.add("llama.attention.head_count", config.n_heads)
        writer.add("llama.attention.head_count_kv", config.n_kv_heads)
        writer.add("llama.attention.layer_norm_rms_epsilon", _RMS_EPS)
        writer.add("llama.rope.dimension_count", config.head_dim)
        writer.add("llama.rope.freq_base", _ROPE_BASE)
        writer.add("llama.vocab_size", config.vocab_size)
        writer.add("general.file_type", file_type(quant, sources))
        writer.add("general.quantization_version", 2)
        vocabulary.write(writer)
        emitter = Emitter(writer, quant, tied_head=config.shared_head)
        for tensor in sources:
            emitter.add(tensor)
    return emitter.report(out, "llama")


def _sources(checkpoint: Llama2cCheckpoint) -> list[Source]:
    weights = checkpoint.weights
    sources = [_source("token_embd.weight", weights["tok_embeddings"])]
    for layer in range(checkpoint.config.n_layers):
        sources += [
            _source(f"blk.{layer}.{name}.weight", weights[theirs], layer) for theirs, name in _PER_LAYER.items()
        ]
    sources.append(_source("output_norm.weight", weights["norm"]))
    if "output" in weights:
        sources.append(_source("output.weight", weights["output"]))
    return sources


def _source(name: str, tensor: Llama2cTensor, layer: int | None = None) -> Source:
    """All of a tensor, or what it has of one layer."""
    shape = tensor.shape if layer is None else tensor.shape[1:]
    first = 0 if layer is None else layer * prod(shape[:-1])
    return Source(name, shape, GgmlType.F32, lambda start, stop: tensor.rows(first + start, first + stop))


def _vocabulary(source: Path, tokenizer: Path | None, vocab_size: int) -> Vocabulary:
    path = tokenizer or _find_tokenizer(source, vocab_size)
    if path.suffix == ".model":
        vocabulary = read_sentencepiece(path)
        vocabulary.resize(vocab_size)
        return vocabulary
    return llama2c_vocabulary(read_llama2c_tokenizer(path, vocab_size), str(path))


def _find_tokenizer(source: Path, vocab_size: int) -> Path:
    names = [f"tok{vocab_size}.bin", "tokenizer.bin", f"tok{vocab_size}.model", "tokenizer.model"]
    for name in names:
        if source.with_name(name).is_file():
            return source.with_name(name)
    raise NotFoundError(
        f"{source}: a llama2.c checkpoint holds no tokenizer, and beside it is none of {', '.join(names)}; "
        "give one with --tokenizer FILE"
    )
