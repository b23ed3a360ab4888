"""Files as Ollama's converters wrote them (names, kinds of numbers, towers and guessing layers in the same file) are
the models that llama.cpp's files hold: the same logits, bit for bit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, metadata_of, tokens_of, write


@dataclass(frozen=True)
class Written:
    """An instance's file, as Ollama's converter would have written it. parts, keys: our names -> its; both without
    layers and architecture, tensors with `.weight`."""

    instance: str
    architecture: str
    parts: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    more: dict[str, object] = field(default_factory=dict)


_VISION = {
    "vision.block_count": 2, "vision.embedding_length": 8, "vision.image_mean": np.full(3, 0.5, np.float32),
    "vision.deepstack_visual_indexes": np.arange(2, dtype=np.int32), "image_token_id": 5,
}  # fmt: skip
_TOWERS = (
    "v.blk.0.attn_k.weight", "v.patch_embd.weight", "mm.input_projection.weight", "a.blk.0.conv_dw.weight",
    "a.conv1d.0.weight", "mtp.fc.weight", "mtp.layers.0.mlp.experts.0.up_proj.weight", "v.std_bias",
    "model.vision_tower.layers.0.self_attn.q_proj.weight", "s.position_embd",
)  # fmt: skip

WRITTEN = [
    Written(
        "gptoss", "gptoss",
        {"attn_output.weight": "attn_out.weight", "attn_output.bias": "attn_out.bias",
         "attn_sinks.weight": "attn_sinks", "post_attention_norm.weight": "ffn_norm.weight"},
        without=("expert_feed_forward_length", "rope.dimension_count", "rope.scaling.type"),
    ),
    Written("olmo2", "olmo3", more={"rope.scaling.extrapolation_factor": 1.0}),
    Written("qwen2vl", "qwen25vl", keys={"rope.dimension_sections": "rope.mrope_section"}, more=_VISION),
    Written("qwen3vl", "qwen3vl", without=("rope.dimension_sections",), more=_VISION),
    Written("qwen35moe", "qwen35moe", {"ssm_dt.bias": "ssm_dt"},
            more={**_VISION, "attention.head_count_kv": np.array([0, 0, 2], np.uint32), "ssm.v_head_reordered": True,
                  "rope.dimension_sections": np.array([2, 1, 1], np.int32), "rope.mrope_interleaved": True}),
    Written("gemma3", "gemma3",
            keys={"rope.freq_base": "rope.global.freq_base"},
            without=("rope.scaling.type", "rope.scaling.factor"),
            more={**_VISION, "mm.tokens_per_image": 256}),
    Written("gemma3n", "gemma3n",
            keys={"rope.freq_base_swa": "rope.freq_base_local", "attention.key_length": "head_dim"},
            without=("attention.value_length",)),
    Written("gemma4-moe", "gemma4", {"ffn_down_exps.scale": "ffn_gate_inp.per_expert_scale"},
            more={**_VISION, "audio.block_count": 2}),
    Written("lfm2", "lfm2", {"token_embd_norm.weight": "output_norm.weight"}, more={"feed_forward_length": 12288}),
    Written("mistral3", "mistral3",
            keys={"rope.scaling.yarn_beta_fast": "rope.scaling.beta_fast",
                  "rope.scaling.yarn_beta_slow": "rope.scaling.beta_slow",
                  "rope.scaling.yarn_log_multiplier": "rope.scaling.mscale_all_dim",
                  "attention.temperature_scale": "rope.scaling_beta"},
            more=_VISION),
    Written("deepseek2", "glm4moelite",
            more={"attention.head_count_kv": 4, "attention.key_length": 24, "attention.value_length": 16,
                  "attention.key_length_mla": 40, "attention.value_length_mla": 32}),
    Written("laguna", "laguna", {"attn_gate.weight": "attn_g.weight"},
            keys={"rope.dimension_count_swa": "rope.swa.dimension_count", "rope.freq_base_swa": "rope.swa.freq_base"}),
    Written("nemotron_h_moe-latent", "nemotron_h_moe",
            {"ffn_latent_down.weight": "ffn_latent_in.weight", "ffn_latent_up.weight": "ffn_latent_out.weight"},
            without=("moe_latent_size",)),
    Written("nemotron_h_moe", "nemotron_h_omni", more=_VISION),
    Written("nemotron_h", "nemotron_h_omni", more=_VISION),
    Written("llama4", "llama4", more=_VISION),
]  # fmt: skip


def rewrite(source, target, written: Written, extra=(), embedding=None):
    """The file at `source` again, as it is `written`; `extra`: names of tensors that text does not need."""
    given = metadata_of(INSTANCES[written.instance])
    with open_gguf(source) as gguf, GgufWriter(target, written.architecture) as w:
        for key, value in {**{k: v for k, v in given.items() if k not in written.without}, **written.more}.items():
            w.add(f"{written.architecture}.{written.keys.get(key, key)}", value)
        for name, info in gguf.tensors.items():
            layer, part = re.fullmatch(r"(blk\.\d+\.)?(.*)", name).groups()
            raw = np.array(gguf.raw(name))
            data = raw.view(np.float32).reshape(info.shape) if info.type is GgmlType.F32 else raw
            data = embedding if name == "token_embd.weight" and embedding is not None else data
            w.add_tensor((layer or "") + written.parts.get(part, part), data, info.type)
        for name in extra:
            w.add_tensor(name, np.ones((2, 3, 4), np.float32), GgmlType.F16)
    return target


def logits(path, instance, kernels):
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        return decoder.forward(tokens_of(instance), decoder.new_cache(128), logits="all"), spec


@pytest.mark.parametrize("written", WRITTEN, ids=lambda w: f"{w.architecture}-{w.instance}")
def test_ollamas_files_are_the_same_models(written, directory, kernels):
    instance = INSTANCES[written.instance]
    plain = directory / f"{instance.name}.gguf"
    write(instance, plain)
    want, _ = logits(plain, instance, kernels)
    got, spec = logits(rewrite(plain, directory / "ollama.gguf", written, _TOWERS), instance, kernels)
    np.testing.assert_array_equal(got, want)
    assert spec.architecture == instance.arch
    assert any("see images and hear" in line for line in spec.unused)


def test_gate_and_up_apart(directory, kernels):
    """GLM-OCR's, which llama.cpp has in one matrix."""
    instance = INSTANCES["glm4-sections"]
    plain = directory / "glm4-sections.gguf"
    write(instance, plain)
    want, _ = logits(plain, instance, kernels)
    parts = {"attn_output": "attn_out", "post_attention_norm": "post_attn_norm", "post_ffw_norm": "post_ffn_norm"}
    names = {f"{ours}.weight": f"{its}.weight" for ours, its in parts.items()}
    written = Written(
        "glm4-sections", "glmocr", {**names, "ffn_up.weight": "both"}, {"rope.dimension_sections": "rope.mrope_section"}
    )
    packed = rewrite(plain, directory / "packed.gguf", written)
    with GgufWriter(directory / "glmocr.gguf", "glmocr") as w, open_gguf(packed) as gguf:
        for key in gguf.metadata:
            if key.startswith("glm4."):
                w.add("glmocr" + key[4:], gguf.metadata[key])
        for name, info in gguf.tensors.items():
            data = gguf.raw(name).view(np.float32).reshape(info.shape)
            gate, up = name.replace("both", "ffn_gate.weight"), name.replace("both", "ffn_up.weight")
            for part, rows in zip(dict.fromkeys((gate, up)), np.split(data, 1 + (gate != up)), strict=True):
                w.add_tensor(part, rows, GgmlType.F32)
    got, _ = logits(directory / "glmocr.gguf", instance, kernels)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_the_embedding_ends_where_text_does(directory, kernels):
    """Gemma 3n's has rows of images and sounds that the layers' embedding has not."""
    instance = INSTANCES["gemma3n"]
    plain = directory / "gemma3n.gguf"
    write(instance, plain)
    want, _ = logits(plain, instance, kernels)
    written = next(each for each in WRITTEN if each.instance == "gemma3n")
    with open_gguf(plain) as gguf:
        rows = gguf.raw("token_embd.weight").view(np.float32)
    longer = rewrite(plain, directory / "longer.gguf", written, embedding=np.concatenate([rows, rows[:4] + 1]))
    got, spec = logits(longer, instance, kernels)
    np.testing.assert_array_equal(got, want)
    assert spec.vocab_size == len(rows)


def test_a_tensor_under_both_names_is_refused(directory):
    instance = INSTANCES["gptoss"]
    plain = directory / "gptoss.gguf"
    write(instance, plain)
    written = Written("gptoss", "gptoss")
    with pytest.raises(FormatError, match="two names of one tensor"):
        open_gguf(rewrite(plain, directory / "both.gguf", written, ("blk.0.ffn_norm.weight",)))
