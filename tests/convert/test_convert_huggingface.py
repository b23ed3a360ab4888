"""Hugging Face directories -> GGUF: names, shapes, values, metadata of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_checkpoint import (
    CONFIGS,
    EXPERTS,
    HEADS,
    KV,
    LAYERS,
    VOCAB,
    config_of,
    shapes_of,
    write_bpe_tokenizer,
    write_checkpoint,
    write_safetensors,
)
from numpy.typing import NDArray

from edgerun.convert import convert_checkpoint
from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufFile, open_gguf
from edgerun.formats.quants import dequantize

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "olmoe": "olmoe", "phi3": "phi3", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "qwen3_vl_text": "qwen3vl", "ministral3": "mistral3",
}  # fmt: skip


def f32(g: GgufFile, name: str) -> NDArray[np.float32]:
    assert g.tensors[name].type is GgmlType.F32
    return g.raw(name).view("<f4").reshape(g.tensors[name].shape)


def convert(folder: Path, **options: Any) -> GgufFile:
    convert_checkpoint(folder, folder / "out.gguf", overwrite=True, **options)
    return open_gguf(folder / "out.gguf")


FOLDED = (  # their files hold other numbers
    *("lfm2", "lfm2_moe", "qwen3_5_text", "qwen3_5_moe_text", "gpt_oss"),
    *("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "nemotron_h", "nemotron_h_moe"),
    *("gemma4_text", "gemma4_moe_text"),
)


@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name not in FOLDED])
def test_every_family_keeps_every_number(tmp_path: Path, model_type: str) -> None:
    weights = write_checkpoint(tmp_path, model_type)
    config = config_of(model_type)
    with convert(tmp_path) as g:
        assert g.architecture == ARCHITECTURES[model_type]
        get = {key.removeprefix(f"{g.architecture}."): g.metadata[key] for key in g.metadata}
        assert get["block_count"] == config["num_hidden_layers"]
        assert get["context_length"] == 128
        assert get["attention.head_count"] == HEADS
        assert get["attention.head_count_kv"] == config["num_key_value_heads"]
        assert get["attention.key_length"] == config.get("head_dim", 8)
        assert get["rope.freq_base"] == config["rope_theta"]
        extra = sum(g.tensors[name].shape[0] for name in g.tensors if name.startswith("rope_"))
        assert sum(np.prod(info.shape) for info in g.tensors.values()) - extra == sum(
            array.size for array in weights.values()
        ), "weights were lost or doubled"
        stored = np.sort(np.concatenate([f32(g, name).ravel() for name in g.tensors if "rope_" not in name]))
        plus_one = "gemma" in model_type
        given = np.concatenate(
            [(array + np.float32(plus_one and array.ndim == 1)).ravel() for array in weights.values()]
        )
        assert (stored == np.sort(given)).all()
        for layer in range(LAYERS):
            assert f32(g, f"blk.{layer}.attn_output.weight").tolist() == (
                weights[f"model.layers.{layer}.self_attn.o_proj.weight"].tolist()
            )
        if "tie_word_embeddings" in CONFIGS[model_type]:
            assert "output.weight" not in g.tensors
        else:
            assert (f32(g, "output.weight") == weights["lm_head.weight"]).all()


def test_lfm2(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "lfm2")
    with convert(tmp_path) as g:
        get = {key.removeprefix("lfm2."): g.metadata[key] for key in g.metadata}
        assert list(get["attention.head_count_kv"]) == [0, KV, 0]
        assert (get["shortconv.l_cache"], get["feed_forward_length"]) == (3, 64)
        assert (f32(g, "token_embd_norm.weight") == weights["model.embedding_norm.weight"]).all()
        taps = f32(g, "blk.2.shortconv.conv.weight")
        assert (taps == weights["model.layers.2.conv.conv.weight"][:, 0]).all()
        assert sum(np.prod(info.shape) for info in g.tensors.values()) == sum(map(np.size, weights.values()))
    changed = config_of("lfm2", layer_types=["conv", "full_attention", "other"])
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UnsupportedError, match="a layer of type 'other'"):
        convert(tmp_path)


def test_gpt_oss_whose_experts_are_mxfp4(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "gpt_oss")
    rng = np.random.default_rng(3)
    packed: dict[str, NDArray[Any]] = {}
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    expected: dict[str, NDArray[np.float32]] = {}
    for layer in range(3):
        at = f"model.layers.{layer}.mlp.experts."
        for stem, rows, cols in (("gate_up_proj", 128, 32), ("down_proj", 32, 64)):
            blocks = rng.integers(0, 256, (EXPERTS, rows, cols // 32, 16), np.uint8)
            scales = rng.integers(120, 128, (EXPERTS, rows, cols // 32), np.uint8)
            numbers = values[np.stack([blocks & 15, blocks >> 4], axis=-1)].reshape(EXPERTS, rows, -1, 32)
            whole = (numbers * 2.0 ** (scales.astype(np.float32) - 127)[..., None]).reshape(EXPERTS, rows, cols)
            packed |= {f"{at}{stem}_blocks": blocks, f"{at}{stem}_scales": scales}
            expected[f"{layer}.{stem}"] = whole.astype(np.float32)
            del weights[f"{at}{stem}"]
    write_safetensors(tmp_path / "model.safetensors", {**weights, **packed})
    config = config_of("gpt_oss", quantization_config={"quant_method": "mxfp4"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with convert(tmp_path) as g:
        for layer in range(3):
            for part, stem, rows in (
                ("gate", "gate_up_proj", slice(0, None, 2)),
                ("up", "gate_up_proj", slice(1, None, 2)),
                ("down", "down_proj", slice(None)),
            ):
                name = f"blk.{layer}.ffn_{part}_exps.weight"
                assert g.tensors[name].type is GgmlType.MXFP4
                found = dequantize(g.raw(name).reshape(-1, g.tensors[name].type.block_bytes), GgmlType.MXFP4)
                assert (found.ravel() == expected[f"{layer}.{stem}"][:, rows].ravel()).all(), name
        biases = weights["model.layers.1.mlp.experts.gate_up_proj_bias"]
        assert (f32(g, "blk.1.ffn_up_exps.bias") == biases[:, 1::2]).all()
        assert g.metadata["gpt-oss.expert_feed_forward_length"] == 64
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_types": ["full_attention"] * 3}))
    with pytest.raises(FormatError, match="in turn"):
        convert(tmp_path)


def test_qwen_3_5(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "qwen3_5_text")
    extra = {"mtp.fc.weight": np.ones((2, 2), np.float32), "model.visual.x.weight": np.ones((2, 2), np.float32)}
    write_safetensors(tmp_path / "model.safetensors", {**weights, **extra})
    with convert(tmp_path) as g:
        get = {key.removeprefix("qwen35."): g.metadata[key] for key in g.metadata}
        assert list(get["attention.recurrent_layers"]) == [True, True, True, False]
        assert list(get["rope.dimension_sections"]) == [2, 1, 1, 0]
        assert (get["rope.dimension_count"], get["attention.key_length"]) == (8, 16)
        sizes = ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")
        assert [get[f"ssm.{name}"] for name in sizes] == [4, 8, 2, 4, 32]
        theirs = "model.layers.0.linear_attn."
        tiled = [0, 2, 1, 3]  # the first value head of each key head, then the second
        assert np.allclose(f32(g, "blk.0.ssm_a"), -np.exp(weights[f"{theirs}A_log"][tiled]))
        assert (f32(g, "blk.0.ssm_alpha.weight") == weights[f"{theirs}in_proj_a.weight"][tiled]).all()
        assert (f32(g, "blk.0.ssm_norm.weight") == weights[f"{theirs}norm.weight"]).all()
        assert (f32(g, "blk.0.attn_norm.weight") == weights["model.layers.0.input_layernorm.weight"] + 1).all()
        assert sum(np.prod(info.shape) for info in g.tensors.values()) == sum(map(np.size, weights.values()))
    with convert(tmp_path, quant="Q8_0") as g:
        kinds = {
            name: g.tensors[f"blk.0.{name}"].type.name for name in ("ssm_conv1d.weight", "attn_qkv.weight", "ssm_a")
        }
        assert kinds == {"ssm_conv1d.weight": "F32", "attn_qkv.weight": "Q8_0", "ssm_a": "F32"}


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("lfm2", {"conv_L_cache": 0}, "conv_L_cache is 0"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types does not name"),
        ("lfm2", {"block_multiple_of": 0}, "block_multiple_of"),
        ("qwen3_5_text", {"linear_num_value_heads": 3}, "3 value heads do not share 2"),
        ("qwen3_5_text", {"linear_key_head_dim": None}, "linear_key_head_dim"),
        ("qwen3_5_text", {"rope_parameters": {"mrope_section": [1]}}, "mrope_section"),
    ],
)
def test_numbers_of_layers_that_cannot_be(
    tmp_path: Path, model_type: str, changes: dict[str, Any], reason: str
) -> None:
    write_checkpoint(tmp_path, model_type)
    (tmp_path / "config.json").write_text(json.dumps(config_of(model_type, **changes)))
    with pytest.raises(FormatError, match=reason):
        convert(tmp_path)


def rotate(x: NDArray[np.float64], position: int, dim: int, neighbours: bool) -> NDArray[np.float64]:
    """RoPE of one head: neighbours rotate together (GGUF's llama), or halves (Hugging Face)."""
    angle = position * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    first, second = (x[0::2], x[1::2]) if neighbours else (x[: dim // 2], x[dim // 2 :])
    turned = first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)
    out = np.empty_like(x)
    if neighbours:
        out[0::2], out[1::2] = turned
    else:
        out[: dim // 2], out[dim // 2 :] = turned
    return out


@pytest.mark.parametrize("model_type", ["llama", "mistral", "mixtral"])
def test_llamas_permutation_keeps_attention_scores(tmp_path: Path, model_type: str) -> None:
    weights = write_checkpoint(tmp_path, model_type)
    x, y = np.random.default_rng(1).standard_normal((2, 32))
    with convert(tmp_path) as g:
        head_dim = g.metadata["llama.attention.key_length"]
        ours = [f32(g, f"blk.1.attn_{name}.weight") for name in "qk"]
        theirs = [weights[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qk"]
        scores = []
        for (q, k), neighbours in ((ours, True), (theirs, False)):
            q_heads, k_heads = (q @ x).reshape(HEADS, head_dim), (k @ y).reshape(KV, head_dim)
            scores.append([
                rotate(q_heads[h], 9, head_dim, neighbours) @ rotate(k_heads[h // 2], 4, head_dim, neighbours)
                for h in range(HEADS)
            ])  # fmt: skip
    assert np.allclose(*scores, atol=1e-9)
    assert not np.allclose(ours[0], theirs[0])


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "olmoe", "gemma2"])
def test_other_families_are_not_permuted(tmp_path: Path, model_type: str) -> None:
    weights = write_checkpoint(tmp_path, model_type)
    with convert(tmp_path) as g:
        assert (f32(g, "blk.0.attn_q.weight") == weights["model.layers.0.self_attn.q_proj.weight"]).all()


@pytest.mark.parametrize(
    ("model_type", "template"),
    [
        ("mixtral", "block_sparse_moe.experts.{e}.{w}"),
        ("qwen3_moe", "mlp.experts.{e}.{w}"),
        ("olmoe", "mlp.experts.{e}.{w}"),
    ],
)
def test_experts_are_stacked(tmp_path: Path, model_type: str, template: str) -> None:
    weights = write_checkpoint(tmp_path, model_type)
    names = ("w1", "w2", "w3") if model_type == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    with convert(tmp_path) as g:
        for ours, theirs in zip(("gate", "down", "up"), names, strict=True):
            stacked = f32(g, f"blk.1.ffn_{ours}_exps.weight")
            for e in range(EXPERTS):
                name = "model.layers.1." + template.format(e=e, w=theirs) + ".weight"
                assert (stacked[e] == weights[name]).all()
        assert g.metadata[f"{g.architecture}.expert_count"] == EXPERTS
        assert g.metadata[f"{g.architecture}.expert_used_count"] == 2


def test_qwen2moe_shared_expert(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "qwen2_moe")
    with convert(tmp_path) as g:
        assert g.metadata["qwen2moe.expert_shared_feed_forward_length"] == 96
        assert g.metadata["qwen2moe.expert_feed_forward_length"] == 32
        gate = f32(g, "blk.0.ffn_gate_inp_shexp.weight")
        assert gate.shape == (32,)
        assert (gate == weights["model.layers.0.mlp.shared_expert_gate.weight"][0]).all()
        bias = f32(g, "blk.1.attn_k.bias")
        assert (bias == weights["model.layers.1.self_attn.k_proj.bias"]).all()


def test_llama3_rope_factors(tmp_path: Path) -> None:
    """Against transformers' formula, written out one frequency at a time."""
    write_checkpoint(tmp_path, "llama")
    with convert(tmp_path) as g:
        factors = f32(g, "rope_freqs.weight")
    expected = []
    for i in range(0, 8, 2):
        wavelength = 2 * np.pi * 500000.0 ** (i / 8)
        if wavelength < 32 / 4:
            expected.append(1.0)
        elif wavelength > 32 / 1:
            expected.append(8.0)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    assert factors == pytest.approx(expected, rel=1e-6)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0


def test_rope_scalings(tmp_path: Path) -> None:
    for model_type in ("qwen2", "phi3", "gemma3_text"):
        write_checkpoint(tmp_path / model_type, model_type)
    with convert(tmp_path / "qwen2") as g:
        assert g.metadata["qwen2.rope.scaling.type"] == "yarn"
        assert g.metadata["qwen2.rope.scaling.factor"] == 4.0
        assert g.metadata["qwen2.rope.scaling.original_context_length"] == 32
    with convert(tmp_path / "phi3") as g:
        assert f32(g, "rope_factors_long.weight").tolist() == [2, 3, 4, 5]
        assert f32(g, "rope_factors_short.weight").tolist() == [1, 1, 1.5, 2]
        assert g.metadata["phi3.rope.scaling.original_context_length"] == 32
        assert g.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(
            np.sqrt(1 + np.log(4) / np.log(32)), rel=1e-6
        )
        assert g.metadata["phi3.attention.sliding_window"] == 64
    with convert(tmp_path / "gemma3_text") as g:
        assert g.metadata["gemma3.rope.scaling.type"] == "linear"
        assert g.metadata["gemma3.rope.scaling.factor"] == 8.0
        assert g.metadata["gemma3.rope.freq_base"] == 1e6


def test_newer_configs_with_rope_parameters(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    older = dict.fromkeys(("rope_scaling", "rope_theta", "rope_local_base_freq"))
    write_checkpoint(tmp_path, "gemma3_text", rope_parameters=rope, **older)
    with convert(tmp_path) as g:
        assert g.metadata["gemma3.rope.freq_base"] == 2e6
        assert g.metadata["gemma3.rope.scaling.factor"] == 8.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32"),
        ({"rope_local_base_freq": 5000.0}, "rope_local_base_freq is 5000"),
        ({"sliding_window_pattern": 2}, "sliding_window_pattern is 2"),
    ],
)
def test_what_gguf_fixes_for_gemma(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path, "gemma3_text", **changes)
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path)


def test_gemma_soft_caps_and_norms(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "gemma2")
    with convert(tmp_path) as g:
        assert g.metadata["gemma2.attn_logit_softcapping"] == 50.0
        assert g.metadata["gemma2.final_logit_softcapping"] == 30.0
        assert g.metadata["gemma2.attention.sliding_window"] == 64
        theirs = {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
        for ours, name in theirs.items():
            expected = weights[f"model.layers.0.{name}.weight"] + np.float32(1)
            assert (f32(g, f"blk.0.{ours}.weight") == expected).all()


def test_a_multimodal_gemma3_gives_its_text_model(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "gemma3_text")
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    renamed = {f"language_model.{name}": array for name, array in weights.items()}
    renamed["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
    write_safetensors(tmp_path / "model.safetensors", renamed)
    with convert(tmp_path) as g:
        assert g.architecture == "gemma3"
        assert (f32(g, "token_embd.weight") == weights["model.embed_tokens.weight"]).all()


def test_shards_give_the_same_file(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "qwen3")
    convert(tmp_path).close()
    whole = (tmp_path / "out.gguf").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    names = list(weights)
    index = {name: f"model-{1 + i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        write_safetensors(tmp_path / file, {name: weights[name] for name in names if index[name] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    convert(tmp_path).close()
    assert (tmp_path / "out.gguf").read_bytes() == whole


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_types_are_kept(tmp_path: Path, dtype: str) -> None:
    weights = write_checkpoint(tmp_path, "llama", dtype)
    report = convert_checkpoint(tmp_path, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as g:
        info = g.tensors["blk.0.ffn_up.weight"]
        assert info.type is GgmlType[dtype]
        bits = g.raw(info.name).view("<u2")
        read = (bits.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else bits.view("<f2")
        assert (read == weights["model.layers.0.mlp.up_proj.weight"]).all()
        assert g.tensors["blk.0.attn_norm.weight"].type is GgmlType.F32
        assert g.metadata["general.file_type"] == {"BF16": 32, "F16": 1}[dtype]
    assert report.types[dtype] > report.types["F32"] > 0


def test_quantised_on_the_way(tmp_path: Path) -> None:
    from edgerun.formats.quants import dequantize

    weights = write_checkpoint(tmp_path, "mixtral")
    report = convert_checkpoint(tmp_path, tmp_path / "out.gguf", quant="q8_0")
    assert not report.fallbacks
    with open_gguf(tmp_path / "out.gguf") as g:
        types = {name: info.type for name, info in g.tensors.items()}
        assert types["blk.0.ffn_gate_exps.weight"] is GgmlType.Q8_0
        assert types["blk.0.ffn_gate_inp.weight"] is GgmlType.F32
        assert types["token_embd.weight"] is GgmlType.Q8_0
        assert g.metadata["general.file_type"] == 7
        read = dequantize(g.raw("blk.0.attn_v.weight"), GgmlType.Q8_0)
    given = weights["model.layers.0.self_attn.v_proj.weight"]
    assert np.abs(read - given).max() < np.abs(given).max() / 127


def test_rows_that_are_no_blocks_fall_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama")
    report = convert_checkpoint(tmp_path, tmp_path / "out.gguf", quant="Q4_K")
    used = {fallback.tensor: fallback.used for fallback in report.fallbacks}
    assert used.pop("output.weight", "Q8_0") == "Q8_0"  # the head is never less than Q6_K would be
    assert set(used.values()) == {"Q5_0"}, "as llama-quantize does"
    assert "token_embd.weight" in {fallback.tensor for fallback in report.fallbacks}
    assert "32 weights are no whole blocks of 256" in report.fallbacks[0].reason


def test_tokenizer_metadata(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen2")
    write_bpe_tokenizer(tmp_path, add_bos_token=True, chat_template="{{ messages }}")
    with convert(tmp_path) as g:
        get = {key.removeprefix("tokenizer.ggml."): g.metadata[key] for key in g.metadata}
        assert (get["model"], get["pre"]) == ("gpt2", "gpt-2")
        assert len(get["tokens"]) == VOCAB
        assert get["tokens"][:3] == ["<|pad|>", "<|bos|>", "<|eos|>"]
        assert get["tokens"][43:47] == ['!"', '!"#', "<tool>", "[PAD46]"]
        assert get["token_type"][[0, 3, 45, 46]].tolist() == [3, 1, 4, 5]
        assert get["merges"] == ['! "', '!" #']
        assert (get["bos_token_id"], get["eos_token_id"], get["padding_token_id"]) == (1, 2, 0)
        assert get["add_bos_token"] is True
        assert get["add_eos_token"] is False
        assert g.metadata["tokenizer.chat_template"] == "{{ messages }}"


def test_named_templates_and_a_template_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen2")
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    write_bpe_tokenizer(tmp_path, chat_template=named)
    with convert(tmp_path) as g:
        assert g.metadata["tokenizer.chat_template"] == "A"
        assert g.metadata["tokenizer.chat_template.tool_use"] == "B"
        assert g.metadata["tokenizer.chat_templates"] == ["tool_use"]
    (tmp_path / "chat_template.jinja").write_text("C")
    with convert(tmp_path) as g:
        assert g.metadata["tokenizer.chat_template"] == "C"


def test_every_family_has_a_tiny_checkpoint_here() -> None:
    from edgerun.convert.hf_families import FAMILIES

    recorded = {"gemma3n_text", "qwen3_vl_moe_text", "muse_glimmer_text", "qwen2_5_vl_text"}  # in hf_recorded
    same = {"gemma3", "gemma4_unified_text", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl"}  # as others are
    assert set(FAMILIES) - same - recorded == set(CONFIGS)
    assert all(shapes_of(config_of(model_type)) for model_type in CONFIGS)
