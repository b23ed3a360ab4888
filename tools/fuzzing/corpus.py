"""Small good files of every family and format, made by our own writers: the same bytes every time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from edgerun.formats.gguf import open_gguf
from edgerun.formats.gguf.writer import GgufWriter
from tests.convert import hf_checkpoint
from tests.convert.test_convert_llama2c import write_checkpoint, write_tokenizer
from tests.models.instances import INSTANCES, write
from tests.text.vocabularies import sentencepiece
from tests.tiny_model import CHATML, make_tiny_model

KINDS = ("gguf", "safetensors", "llama2c", "tokenizer", "template")
_LLAMA3 = (
    "{{ bos_token }}{%- if tools is defined and tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}"
    "{%- endif %}{%- for message in messages %}{%- if message.role not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('role ' + message.role) }}{%- endif %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n"
    "{{- message.content | trim }}<|eot_id|>{%- endfor %}{%- set ns = namespace(n=0) %}{% for m in messages[::-1] %}"
    "{%- set ns.n = ns.n + loop.index0 %}{% endfor %}{%- if add_generation_prompt %}assistant{{ ns.n }}{%- endif %}"
)


@dataclass(frozen=True)
class Subject:
    """A good model: a file, or a folder of them."""

    kind: str
    name: str
    path: Path


def make_corpus(folder: Path) -> list[Subject]:
    """Write it all; about 100 files, 30 MB."""
    made = [Subject("gguf", name, write(instance, folder / f"{name}.gguf")) for name, instance in INSTANCES.items()]
    for arch in ("llama", "qwen2", "qwen3"):
        made.append(Subject("gguf", f"tiny-{arch}", make_tiny_model(folder / f"tiny-{arch}.gguf", arch=arch)))
    tiny = folder / "tiny-llama.gguf"
    made.append(Subject("gguf", "tiny-sentencepiece", _with_sentencepiece(tiny, folder / "tiny-sentencepiece.gguf")))
    for name in hf_checkpoint.CONFIGS:
        hf_checkpoint.write_checkpoint(folder / name, name)
        made.append(Subject("safetensors", name, folder / name))
    for name in ("llama", "qwen3"):
        made.append(Subject("tokenizer", name, folder / name))
    bins = folder / "llama2c"
    bins.mkdir()
    write_checkpoint(bins / "model.bin", own_head=True)
    write_tokenizer(bins / "tokenizer.bin")
    made.append(Subject("llama2c", "llama2c", bins))
    for name, source in (("chatml", CHATML), ("llama3", _LLAMA3)):
        path = folder / f"{name}.jinja"
        path.write_text(source)
        made.append(Subject("template", name, path))
    return made


def _with_sentencepiece(source: Path, target: Path) -> Path:
    """The file with another tokenizer, cut or filled up to as many tokens."""
    with open_gguf(source) as gguf, GgufWriter(target, gguf.architecture) as w:
        count = gguf.tensors["token_embd.weight"].shape[0]
        vocabulary = sentencepiece()
        for key in gguf.metadata:
            if key != "general.architecture" and not key.startswith("tokenizer.ggml."):
                w.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
        for key, value in vocabulary.items():
            if isinstance(value, list):
                value = [*value, *(f"<filler {i}>" for i in range(count))][:count]
            elif not isinstance(value, (str, int)):
                value = [*value.tolist(), *[value.dtype.type(1).item()] * count][:count]
            w.add(key, value)
        for name, info in gguf.tensors.items():
            w.add_tensor(name, gguf.raw(name).copy().view("<f4").reshape(info.shape), info.type)
    return target


def copy_subject(subject: Subject, target: Path) -> Path:
    """To a folder of its own, so that it can be damaged."""
    if subject.path.is_dir():
        shutil.copytree(subject.path, target / "model", symlinks=True)
        return target / "model"
    return Path(shutil.copy(subject.path, target / subject.path.name))
