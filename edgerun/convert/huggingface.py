"""A Hugging Face directory (config.json, tokenizer, *.safetensors) -> GGUF."""

from __future__ import annotations

from pathlib import Path

from edgerun.convert.hf_config import HfConfig, hyperparameters, parse_config
from edgerun.convert.hf_tensors import plan_tensors
from edgerun.convert.hf_tokenizer import read_hf_tokenizer
from edgerun.convert.report import Report
from edgerun.convert.target import Check
from edgerun.convert.tensors import Emitter, file_type
from edgerun.events import EventSink
from edgerun.formats.gguf import GgmlType, GgufWriter
from edgerun.formats.safetensors import open_safetensors, read_json


def convert_huggingface(
    source: Path, out: Path, *, tokenizer: Path | None, quant: GgmlType | None, check: Check, events: EventSink
) -> Report:
    """Write the checkpoint in the directory `source` as a GGUF."""
    raw = read_json(source / "config.json")
    config = parse_config(raw, str(source / "config.json"))
    architecture = config.family.architecture
    vocabulary = read_hf_tokenizer(tokenizer or source, architecture, config.raw)
    with open_safetensors(source) as model:
        sources = plan_tensors(model, config)  # checks config.json's numbers against the weights
        dropped = vocabulary.resize(config.vocab_size)
        tied_head = all(tensor.name != "output.weight" for tensor in sources)
        with GgufWriter(out, architecture, check=check, events=events) as writer:
            writer.add("general.type", "model")
            writer.add("general.name", source.resolve().name)
            writer.add("general.file_type", file_type(quant, sources))
            writer.add("general.quantization_version", 2)
            for key, value in hyperparameters(config).items():
                writer.add(f"{architecture}.{key}", value)
            vocabulary.write(writer)
            emitter = Emitter(writer, quant, tied_head)
            for tensor in sources:
                emitter.add(tensor)
            emitter.notes += _notes(config, dropped)
    return emitter.report(out, architecture)


def _notes(config: HfConfig, dropped: list[str]) -> list[str]:
    notes = []
    if config.sparse:
        notes.append(
            f"a {config.raw['hidden_act']} model: down is stored transposed (ffn_down_t), so that neurons that "
            "do not fire need not be read; other programs do not know this"
        )
    if dropped:
        notes.append(f"{len(dropped)} added tokens have no row in the embedding and were left out: {dropped[:3]}")
    if config.raw.get("sliding_window") and not config.family.sliding_window:
        notes.append(
            f"sliding_window {config.raw['sliding_window']} has no place in GGUF's "
            f"{config.family.architecture}: "
            "beyond it the converted model attends to the whole context"
        )
    return notes
