"""Tiny Hugging Face checkpoints with random weights, written by hand: one for each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.convert import hf_checkpoint_more

Weights = dict[str, NDArray[np.float32]]

VOCAB, D, FF, LAYERS, HEADS, KV, HEAD = 64, 32, 64, 2, 4, 2, 8
EXPERTS = 4
ROPE_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

BASE: dict[str, Any] = {
    "hidden_size": D, "intermediate_size": FF, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": ROPE_LLAMA3, "rope_theta": 500000.0},
    "mistral": {"head_dim": 16, "sliding_window": 64},
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen2": {"tie_word_embeddings": True,
              "rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.25,
                                                          "original_max_position_embeddings": 32}},
    "qwen3": {"head_dim": 16},
    "qwen2_moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 96, "norm_topk_prob": False, "decoder_sparse_step": 1},
    "qwen3_moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                  "norm_topk_prob": True, "head_dim": 16, "mlp_only_layers": []},
    "olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": False, "clip_qkv": None,
              "num_key_value_heads": HEADS},
    "phi3": {"rope_scaling": {"type": "longrope", "long_factor": [2.0, 3.0, 4.0, 5.0],
                              "short_factor": [1.0, 1.0, 1.5, 2.0]},
             "original_max_position_embeddings": 32, "sliding_window": 64},
    "lfm2": {"num_hidden_layers": 3, "norm_eps": 1e-5, "conv_L_cache": 3, "block_ff_dim": 90, "conv_bias": False,
             "block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 32,
             "full_attn_idxs": [1], "tie_embedding": True, "tie_word_embeddings": True},
    "gpt_oss": {"num_hidden_layers": 3, "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "swiglu_limit": 7.0,
                "sliding_window": 8, "attention_bias": True, "head_dim": 16,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "qwen3_5_text": {"num_hidden_layers": 4, "head_dim": 16, "full_attention_interval": 4, "rms_norm_eps": 1e-6,
                     "linear_conv_kernel_dim": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                     "linear_key_head_dim": 8, "linear_value_head_dim": 8, "attn_output_gate": True,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                                         "mrope_section": [2, 1, 1]}},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64,
               "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, "rope_theta": 1e6,
                    "rope_local_base_freq": 10000.0, "tie_word_embeddings": True, "num_hidden_layers": 7,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
}  # fmt: skip


CONFIGS["lfm2_moe"] = {
    "num_hidden_layers": 3, "norm_eps": 1e-5, "conv_L_cache": 3, "conv_bias": False, "tie_word_embeddings": True,
    "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1, "num_experts": EXPERTS,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
}  # fmt: skip
CONFIGS["qwen3_5_moe_text"] = CONFIGS["qwen3_5_text"] | {
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
    "shared_expert_intermediate_size": 96,
}  # fmt: skip


CONFIGS["qwen3_vl_text"] = {"head_dim": 16, "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
CONFIGS["ministral3"] = {
    "head_dim": 16, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3, "beta_fast": 32.0, "beta_slow": 1.0,
    },
}  # fmt: skip
CONFIGS |= hf_checkpoint_more.CONFIGS


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    written = {"nemotron_h_moe": "nemotron_h", "gemma4_moe_text": "gemma4_text"}.get(model_type, model_type)
    return {"model_type": written, **BASE, **CONFIGS[model_type], **changes}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers saves them."""
    kind = config["model_type"]
    if kind in hf_checkpoint_more.CONFIGS:
        return hf_checkpoint_more.shapes_of(config)
    head = config.get("head_dim", HEAD)
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCAB, D)
    if kind.startswith("lfm2"):
        return lfm2_shapes(config)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        if kind == "gpt_oss":
            shapes |= gpt_oss_layer(config, p)
            continue
        if kind.startswith("qwen3_5"):
            shapes |= qwen35_layer(config, p, layer)
            continue
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{p}{norm}.weight": (D,) for norm in norms}
        if kind == "phi3":
            shapes[f"{p}self_attn.qkv_proj.weight"] = (q + 2 * kv, D)
            shapes[f"{p}mlp.gate_up_proj.weight"] = (2 * FF, D)
            shapes[f"{p}mlp.down_proj.weight"] = (D, FF)
        else:
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, D)
                if kind.startswith("qwen2"):
                    shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{p}self_attn.o_proj.weight"] = (D, q)
        if kind in ("qwen3", "qwen3_vl_text", "qwen3_moe", "gemma3_text", "olmoe"):
            full = kind == "olmoe"
            shapes[f"{p}self_attn.q_norm.weight"] = (q if full else head,)
            shapes[f"{p}self_attn.k_norm.weight"] = (kv if full else head,)
        if kind == "mixtral":
            shapes[f"{p}block_sparse_moe.gate.weight"] = (EXPERTS, D)
            for e in range(EXPERTS):
                for name, shape in (("w1", (FF, D)), ("w2", (D, FF)), ("w3", (FF, D))):
                    shapes[f"{p}block_sparse_moe.experts.{e}.{name}.weight"] = shape
        elif "num_experts" in config:
            ff = config.get("moe_intermediate_size", FF)
            shapes[f"{p}mlp.gate.weight"] = (EXPERTS, D)
            for e in range(EXPERTS):
                shapes |= mlp(f"{p}mlp.experts.{e}.", ff)
            if "shared_expert_intermediate_size" in config:
                shapes |= mlp(f"{p}mlp.shared_expert.", config["shared_expert_intermediate_size"])
                shapes[f"{p}mlp.shared_expert_gate.weight"] = (1, D)
        elif kind != "phi3":
            shapes |= mlp(f"{p}mlp.", FF)
    return shapes


def lfm2_attention(config: dict[str, Any]) -> list[int]:
    """The layers with attention."""
    kinds = config.get("layer_types", [])
    return list(config.get("full_attn_idxs", [i for i, kind in enumerate(kinds) if kind != "conv"]))


def lfm2_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    q, kv, ff = HEADS * HEAD, KV * HEAD, FF  # 2/3 of block_ff_dim, to a multiple of 32, is FF
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, D), "model.embedding_norm.weight": (D,)}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= {f"{p}operator_norm.weight": (D,), f"{p}ffn_norm.weight": (D,)}
        places = {f"{p}feed_forward.": ff}
        if layer >= config.get("num_dense_layers", 99):
            places = {f"{p}feed_forward.experts.{e}.": config["moe_intermediate_size"] for e in range(EXPERTS)}
            shapes |= {f"{p}feed_forward.gate.weight": (EXPERTS, D), f"{p}feed_forward.expert_bias": (EXPERTS,)}
        for at, n in places.items():
            shapes |= {f"{at}w{i}.weight": (D, n) if i == 2 else (n, D) for i in (1, 2, 3)}
        if layer in lfm2_attention(config):
            a = f"{p}self_attn."
            shapes |= {f"{a}{c}_proj.weight": (rows, D) for c, rows in (("q", q), ("k", kv), ("v", kv))}
            shapes |= {f"{a}out_proj.weight": (D, q), **{f"{a}{c}_layernorm.weight": (HEAD,) for c in "qk"}}
        else:
            shapes |= {f"{p}conv.in_proj.weight": (3 * D, D), f"{p}conv.out_proj.weight": (D, D)}
            shapes[f"{p}conv.conv.weight"] = (D, 1, config["conv_L_cache"])
    return shapes


def gpt_oss_layer(config: dict[str, Any], p: str) -> dict[str, tuple[int, ...]]:
    a, e, dim = f"{p}self_attn.", f"{p}mlp.experts.", config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {f"{p}{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
    for name, rows in (("q", HEADS * dim), ("k", KV * dim), ("v", KV * dim)):
        shapes |= {f"{a}{name}_proj.weight": (rows, D), f"{a}{name}_proj.bias": (rows,)}
    shapes |= {f"{a}o_proj.weight": (D, HEADS * dim), f"{a}o_proj.bias": (D,), f"{a}sinks": (HEADS,)}
    shapes |= {f"{p}mlp.router.weight": (EXPERTS, D), f"{p}mlp.router.bias": (EXPERTS,)}
    shapes |= {f"{e}gate_up_proj": (EXPERTS, D, 2 * FF), f"{e}gate_up_proj_bias": (EXPERTS, 2 * FF)}
    return shapes | {f"{e}down_proj": (EXPERTS, FF, D), f"{e}down_proj_bias": (EXPERTS, D)}


def qwen35_experts(config: dict[str, Any], p: str) -> dict[str, tuple[int, ...]]:
    ff = config["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {f"{p}gate.weight": (EXPERTS, D), f"{p}shared_expert_gate.weight": (1, D)}
    shapes |= {f"{p}experts.gate_up_proj": (EXPERTS, 2 * ff, D), f"{p}experts.down_proj": (EXPERTS, D, ff)}
    return shapes | mlp(f"{p}shared_expert.", config["shared_expert_intermediate_size"])


def qwen35_layer(config: dict[str, Any], p: str, layer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {f"{p}{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= mlp(f"{p}mlp.", FF) if "num_experts" not in config else qwen35_experts(config, f"{p}mlp.")
    if (layer + 1) % config["full_attention_interval"] == 0:
        dim = config["head_dim"]
        a = f"{p}self_attn."
        shapes |= {f"{a}q_proj.weight": (2 * HEADS * dim, D), f"{a}o_proj.weight": (D, HEADS * dim)}
        shapes |= {f"{a}{c}_proj.weight": (KV * dim, D) for c in "kv"}
        return shapes | {f"{a}{c}_norm.weight": (dim,) for c in "qk"}
    heads = config["linear_num_value_heads"]
    values = heads * config["linear_value_head_dim"]
    channels = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"] + values
    a = f"{p}linear_attn."
    return shapes | {
        f"{a}in_proj_qkv.weight": (channels, D),
        f"{a}in_proj_z.weight": (values, D),
        f"{a}in_proj_a.weight": (heads, D),
        f"{a}in_proj_b.weight": (heads, D),
        f"{a}conv1d.weight": (channels, 1, config["linear_conv_kernel_dim"]),
        f"{a}A_log": (heads,),
        f"{a}dt_bias": (heads,),
        f"{a}norm.weight": (config["linear_value_head_dim"],),
        f"{a}out_proj.weight": (D, values),
    }


def mlp(prefix: str, ff: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (ff, D),
        f"{prefix}up_proj.weight": (ff, D),
        f"{prefix}down_proj.weight": (D, ff),
    }


def write_safetensors(path: Path, weights: dict[str, NDArray[Any]], dtype: str = "F32") -> None:
    """Floats as `dtype`, bytes as they are."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in weights.items():
        bits = {
            "F32": lambda a: a.astype("<f4"),
            "F16": lambda a: a.astype("<f2"),
            "BF16": lambda a: (a.astype("<f4").view("<u4") >> 16).astype("<u2"),
            "U8": lambda a: a,
        }[kind := "U8" if array.dtype == np.uint8 else dtype](array)
        header[name] = {
            "dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + bits.nbytes],
        }  # fmt: skip
        data += bits.tobytes()
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def byte_characters() -> list[str]:
    """The first characters that byte-level BPE writes bytes with."""
    return [chr(code) for code in range(ord("!"), ord("!") + 40)]


def write_bpe_tokenizer(folder: Path, pre: dict[str, Any] | None = None, **settings: Any) -> None:
    """A byte-level BPE tokenizer of 3 special tokens, 40 characters, 2 merges; fewer than the embedding's
    rows."""
    vocab = {"<|pad|>": 0, "<|bos|>": 1, "<|eos|>": 2}
    vocab |= {character: 3 + i for i, character in enumerate(byte_characters())}
    vocab |= {'!"': 43, '!"#': 44}
    added = [{"id": i, "content": text, "special": True} for text, i in list(vocab.items())[:3]]
    added.append({"id": 45, "content": "<tool>", "special": False})
    tokenizer = {
        "added_tokens": added,
        "pre_tokenizer": pre or {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["!", '"'], '!" #']},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    defaults = {"bos_token": {"content": "<|bos|>"}, "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(defaults | settings))


def write_checkpoint(folder: Path, model_type: str, dtype: str = "F32", **changes: Any) -> Weights:
    """A whole directory; returns its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(model_type, **changes)
    rng = np.random.default_rng(7)
    weights = {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes_of(config).items()}
    if dtype == "BF16":
        weights = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in weights.items()}
    if dtype == "F16":
        weights = {name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", weights, dtype)
    write_bpe_tokenizer(folder)
    return weights
