"""Files that Ollama's converters wrote: some architectures, keys and tensors have other names there than llama.cpp's
converters give them. They are read as if they had llama.cpp's; all that edgerun does rests on those.

Source: ollama's llama/compat (which translates the same files for llama.cpp) and convert, August 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgerun.errors import FormatError
from edgerun.formats.gguf.header import TensorInfo
from edgerun.formats.gguf.metadata import Metadata, Scalar

_PART = re.compile(r"(?P<layer>blk\.[0-9]+\.)?(?P<part>[^.]+(?:\.[a-z_]+)??)(?P<end>\.(?:weight|bias|scale))?")


@dataclass(frozen=True)
class Dialect:
    """How the files of an architecture are written. Keys stand without the architecture's name, parts of layers
    without the layer's number."""

    architecture: str  # llama.cpp's name for it
    marks: tuple[str, ...] = ()  # keys, or beginnings of tensors' names, of which one is there; none: all files are so
    model: str = ""  # only files whose tokenizer is said to be of this model; "": of any
    keys: Mapping[str, str] = field(default_factory=dict)  # llama.cpp's name -> the file's
    parts: Mapping[str, str] = field(default_factory=dict)  # the file's name, without .weight -> llama.cpp's
    sizes: Mapping[str, str] = field(default_factory=dict)  # a key that is missing or wrong -> the part with such rows
    absent: Mapping[str, Scalar] = field(default_factory=dict)  # keys -> values where the file has none
    tokenizer: Mapping[str, Scalar] = field(default_factory=dict)  # keys in full -> values, whatever the file has
    cut: str = ""  # the embedding ends where this tensor does: what is beyond is not text


_PRE = "tokenizer.ggml.pre"
_MODEL = "tokenizer.ggml.model"
_SECTIONS = {"rope.dimension_sections": "rope.mrope_section"}
_QWEN = {name: (Dialect(name, parts={"ssm_dt": "ssm_dt.bias"}),) for name in ("qwen35", "qwen35moe", "qwen3next")}
_LFM2 = {
    name: (
        Dialect(
            name,
            marks=("output_norm.weight",),
            parts={"output_norm": "token_embd_norm", "exp_probs_b": "exp_probs_b.bias", "attn_out": "attn_output"},
            sizes={"feed_forward_length": "ffn_gate.weight"},
            tokenizer={_PRE: "lfm2"},
        ),
    )
    for name in ("lfm2", "lfm2moe")
}
_NEMOTRON = Dialect(
    "nemotron_h_moe",
    parts={"ffn_latent_in": "ffn_latent_down", "ffn_latent_out": "ffn_latent_up"},
    sizes={"moe_latent_size": "ffn_latent_in.weight"},
)
_GEMMA3 = Dialect(
    "gemma3",
    marks=("rope.local.freq_base", "rope.global.freq_base"),
    keys={"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"},
    absent={"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
)
_GEMMA4 = Dialect(
    "gemma4",
    keys={"rope.freq_base_swa": "rope.local.freq_base"},
    parts={
        "ffn_gate_inp.per_expert_scale": "ffn_down_exps.scale",
        "layer_scalar": "layer_output_scale.weight",
        "attn_post_norm": "post_attention_norm",
        "ffn_pre_norm": "ffn_norm",
        "ffn_pre_norm_2": "pre_ffw_norm_2",
        "ffn_post_norm": "post_ffw_norm",
        "ffn_post_norm_1": "post_ffw_norm_1",
        "ffn_post_norm_2": "post_ffw_norm_2",
    },
)

DIALECTS: dict[str, tuple[Dialect, ...]] = {  # the file's architecture -> its dialects, of which the first that fits is
    "gptoss": (
        Dialect(
            "gpt-oss",
            parts={
                "attn_out": "attn_output",
                "attn_sinks": "attn_sinks.weight",
                "ffn_norm": "post_attention_norm",
            },
            absent={"rope.scaling.type": "yarn"},
            tokenizer={_PRE: "gpt-4o"},
        ),
    ),
    "olmo3": (Dialect("olmo2"),),
    "qwen25vl": (Dialect("qwen2vl", keys=_SECTIONS),),
    "glm4moelite": (
        Dialect(
            "deepseek2",
            keys={  # these two are a head's there, the others what is kept of a position
                "attention.key_length_mla": "attention.key_length",
                "attention.value_length_mla": "attention.value_length",
            },
            tokenizer={_PRE: "glm4"},
        ),
    ),
    "glmocr": (
        Dialect(
            "glm4",
            keys=_SECTIONS,
            parts={
                "attn_out": "attn_output",
                "post_attn_norm": "post_attention_norm",
                "post_ffn_norm": "post_ffw_norm",
            },
            tokenizer={_PRE: "chatglm-bpe"},
        ),
    ),
    "nemotron_h_moe": (_NEMOTRON,),
    "nemotron_h_omni": (replace(_NEMOTRON, marks=("expert_count",)), Dialect("nemotron_h")),
    "gemma3": (
        replace(
            _GEMMA3,
            marks=("mm.tokens_per_image", "v.", "mm."),  # those with images all stretch what they were trained on
            absent={**_GEMMA3.absent, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        ),
        _GEMMA3,
    ),
    "gemma3n": (
        Dialect(
            "gemma3n",
            marks=("head_dim", "rope.freq_base_local"),
            keys={
                "attention.key_length": "head_dim",
                "attention.value_length": "head_dim",
                "rope.freq_base_swa": "rope.freq_base_local",
            },
            tokenizer={_MODEL: "llama"},
            cut="per_layer_token_embd.weight",
        ),
    ),
    "gemma4": (
        replace(_GEMMA4, marks=("tokenizer.ggml.merges",), model="llama", tokenizer={_MODEL: "gemma4"}),
        _GEMMA4,
    ),
    "mistral3": (
        Dialect(
            "mistral3",
            marks=("v.", "mm.", "rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta"),
            keys={
                "rope.scaling.yarn_beta_fast": "rope.scaling.beta_fast",
                "rope.scaling.yarn_beta_slow": "rope.scaling.beta_slow",
                "rope.scaling.yarn_log_multiplier": "rope.scaling.mscale_all_dim",
                "attention.temperature_scale": "rope.scaling_beta",
            },
            tokenizer={_PRE: "tekken"},
        ),
    ),
    "laguna": (
        Dialect(
            "laguna",
            keys={
                "rope.dimension_count_swa": "rope.swa.dimension_count",
                "rope.freq_base_swa": "rope.swa.freq_base",
            },
            parts={"attn_g": "attn_gate"},
        ),
    ),
    **_QWEN,
    **_LFM2,
}


def as_llama_cpp(metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> tuple[Metadata, dict[str, TensorInfo]]:
    """A file's metadata and tensors under llama.cpp's names. FormatError where that gives one name twice."""
    written = metadata.get("general.architecture")
    choices = DIALECTS.get(written, ()) if isinstance(written, str) else ()
    dialect = next((each for each in choices if _is_written(each, f"{written}.", metadata, tensors)), None)
    if dialect is None:
        return metadata, dict(tensors)
    renamed: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        new = _renamed(name, dialect.parts)
        if new in renamed or (new != name and new in tensors):
            raise FormatError(f"{info.path}: {name!r} and {new!r} are two names of one tensor")
        renamed[new] = replace(info, name=new)
    _cut(renamed, dialect.cut)
    return _read_as(metadata, f"{written}.", dialect, tensors), renamed


def _is_written(dialect: Dialect, prefix: str, metadata: Metadata, tensors: Mapping[str, TensorInfo]) -> bool:
    marks = dialect.marks
    if dialect.model not in ("", metadata.get(_MODEL)):
        return False
    if not marks or any(mark in metadata or prefix + mark in metadata for mark in marks):
        return True
    return any(name.startswith(marks) for name in tensors)


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    match = _PART.fullmatch(name)
    if match is None or match["part"] not in parts:
        return name
    new = parts[match["part"]]
    ends = new.endswith((".weight", ".bias", ".scale"))
    return name if ends and match["end"] else f"{match['layer'] or ''}{new}{'' if ends else match['end'] or ''}"


def _cut(tensors: dict[str, TensorInfo], cut: str) -> None:
    """The embedding has no more rows than the other tensor."""
    embedding, other = tensors.get("token_embd.weight"), tensors.get(cut)
    if embedding is None or other is None or len(embedding.shape) != 2 or other.shape[0] >= embedding.shape[0]:
        return
    shape = other.shape[0], embedding.shape[1]
    tensors[embedding.name] = replace(embedding, shape=shape, n_bytes=shape[0] * embedding.row_bytes)


def _read_as(metadata: Metadata, prefix: str, dialect: Dialect, tensors: Mapping[str, TensorInfo]) -> Metadata:
    to = f"{dialect.architecture}."
    names = {to + key.removeprefix(prefix) if key.startswith(prefix) else key: key for key in metadata}
    names |= {to + new: prefix + old for new, old in dialect.keys.items() if prefix + old in metadata}
    said = {to + key: value for key, value in dialect.absent.items() if to + key not in names}
    if _MODEL in metadata:
        said |= dialect.tokenizer
    for key, part in dialect.sizes.items():
        found = next((info for name, info in tensors.items() if name.endswith(f".{part}")), None)
        if found is not None:
            said[to + key] = found.shape[0]
    if to != prefix:
        said["general.architecture"] = dialect.architecture
    return metadata.read_as(names, said)
