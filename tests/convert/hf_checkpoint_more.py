"""Shapes of checkpoints whose layers are built otherwise: latent attention, Nemotron-H."""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]
D, VOCAB, FF, EXPERTS = 32, 64, 64, 4

_LATENT: dict[str, Any] = {
    "num_hidden_layers": 3, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "kv_lora_rank": 20,
    "q_lora_rank": 24, "n_routed_experts": EXPERTS, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "n_group": 1,
    "topk_group": 1, "attention_bias": False,
}  # fmt: skip
_NEMOTRON: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5, "mamba_num_heads": 4, "mamba_head_dim": 10, "n_groups": 2, "ssm_state_size": 12,
    "conv_kernel": 4, "head_dim": 16, "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "use_conv_bias": True,
}  # fmt: skip
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 9, "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": _LATENT | {"q_lora_rank": None, "norm_topk_prob": False, "scoring_func": "softmax"},
    "deepseek_v3": _LATENT | {"norm_topk_prob": True, "scoring_func": "sigmoid"},
    "kimi_k2": _LATENT | {"norm_topk_prob": True, "scoring_func": "sigmoid", "num_hidden_layers": 2},
    "glm4_moe_lite": _LATENT | {"norm_topk_prob": True, "num_attention_heads": 3, "num_nextn_predict_layers": 1},
    "gemma4_text": _GEMMA4 | {
        "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 12, "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": VOCAB,  # as transformers 5 saves it: what full layers have of their own
        "per_layer_config": {str(layer): {"head_dim": 16, "num_key_value_heads": 1} for layer in (1, 3, 5)},
    },
    "gemma4_moe_text": _GEMMA4 | {
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 24,
    },
    "nemotron_h": _NEMOTRON | {"hybrid_override_pattern": "M-*-"},
    "nemotron_h_moe": _NEMOTRON | {
        "hybrid_override_pattern": "ME*E", "n_routed_experts": EXPERTS, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Names and shapes as transformers saves them."""
    kind = config["model_type"]
    return (_nemotron if kind == "nemotron_h" else _gemma4 if kind == "gemma4_text" else _latent)(config)


def _mlp(at: str, ff: int, gate: bool = True) -> Shapes:
    parts = ("gate", "up") if gate else ("up",)
    return {f"{at}{part}_proj.weight": (ff, D) for part in parts} | {f"{at}down_proj.weight": (D, ff)}


def _latent(config: dict[str, Any]) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,), "lm_head.weight": (VOCAB, D)}
    heads, rank, low = config["num_attention_heads"], config["kv_lora_rank"], config["q_lora_rank"]
    plain, rotated, value = (config[f"{each}_head_dim"] for each in ("qk_nope", "qk_rope", "v"))
    for layer in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        p = f"model.layers.{layer}."
        a, m, q = f"{p}self_attn.", f"{p}mlp.", (heads * (plain + rotated))
        shapes |= {f"{p}{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        if low:
            shapes |= {f"{a}q_a_proj.weight": (low, D), f"{a}q_a_layernorm.weight": (low,)}
        shapes[f"{a}{'q_b' if low else 'q'}_proj.weight"] = (q, low or D)
        shapes |= {f"{a}kv_a_proj_with_mqa.weight": (rank + rotated, D), f"{a}kv_a_layernorm.weight": (rank,)}
        shapes |= {f"{a}kv_b_proj.weight": (heads * (plain + value), rank), f"{a}o_proj.weight": (D, heads * value)}
        if layer < config["first_k_dense_replace"]:
            shapes |= _mlp(m, FF)
            continue
        shapes[f"{m}gate.weight"] = (EXPERTS, D)
        if config["model_type"] != "deepseek_v2":
            shapes[f"{m}gate.e_score_correction_bias"] = (EXPERTS,)
        ff = config["moe_intermediate_size"]
        shapes |= _mlp(f"{m}shared_experts.", config["n_shared_experts"] * ff)
        for expert in range(EXPERTS):
            shapes |= _mlp(f"{m}experts.{expert}.", ff)
    return shapes


def _gemma4(config: dict[str, Any]) -> Shapes:
    at, fed, n = "model.language_model.", config.get("hidden_size_per_layer_input", 0), config["num_hidden_layers"]
    shapes: Shapes = {f"{at}embed_tokens.weight": (VOCAB, D), f"{at}norm.weight": (D,)}
    if fed:
        shapes |= {
            f"{at}embed_tokens_per_layer.weight": (VOCAB, n * fed),
            f"{at}per_layer_projection_norm.weight": (fed,),
        }
        shapes[f"{at}per_layer_model_projection.weight"] = (n * fed, D)
    for layer, kind in enumerate(config["layer_types"]):
        p, full, shared = (
            f"{at}layers.{layer}.",
            kind == "full_attention",
            layer >= n - config.get("num_kv_shared_layers", 0),
        )
        dim, kv_heads = (16, 1) if full else (8, 2)
        norms = [
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ]
        a, q = f"{p}self_attn.", config["num_attention_heads"] * dim
        shapes |= {f"{a}q_proj.weight": (q, D), f"{a}o_proj.weight": (D, q), f"{a}q_norm.weight": (dim,)}
        if not shared:
            shapes |= {f"{a}k_proj.weight": (kv_heads * dim, D), f"{a}k_norm.weight": (dim,)}
            if not (full and config.get("attention_k_eq_v")):
                shapes[f"{a}v_proj.weight"] = (kv_heads * dim, D)
        shapes |= _mlp(f"{p}mlp.", FF * (2 if shared else 1)) | {f"{p}layer_scalar": (1,)}
        if fed:
            shapes |= {f"{p}per_layer_input_gate.weight": (fed, D), f"{p}per_layer_projection.weight": (D, fed)}
            norms.append("post_per_layer_input_norm")
        if config.get("enable_moe_block"):
            ff = config["moe_intermediate_size"]
            shapes |= {f"{p}router.proj.weight": (EXPERTS, D), f"{p}router.scale": (D,)}
            shapes |= {f"{p}router.per_expert_scale": (EXPERTS,), f"{p}experts.gate_up_proj": (EXPERTS, 2 * ff, D)}
            shapes[f"{p}experts.down_proj"] = (EXPERTS, D, ff)
            norms += [f"post_feedforward_layernorm_{i}" for i in (1, 2)] + ["pre_feedforward_layernorm_2"]
        shapes |= {f"{p}{norm}.weight": (D,) for norm in norms}
    return shapes


def _nemotron(config: dict[str, Any]) -> Shapes:
    shapes: Shapes = {"backbone.embeddings.weight": (VOCAB, D), "lm_head.weight": (VOCAB, D)}
    shapes["backbone.norm_f.weight"] = (D,)
    heads, dim = config["mamba_num_heads"], config["mamba_head_dim"]
    inner = heads * dim
    channels = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    for layer, kind in enumerate(config["hybrid_override_pattern"]):
        m = f"backbone.layers.{layer}.mixer."
        shapes[f"backbone.layers.{layer}.norm.weight"] = (D,)
        if kind == "M":
            shapes |= {f"{m}in_proj.weight": (inner + channels + heads, D), f"{m}out_proj.weight": (D, inner)}
            shapes |= {f"{m}conv1d.weight": (channels, 1, config["conv_kernel"]), f"{m}conv1d.bias": (channels,)}
            shapes |= {f"{m}{part}": (heads,) for part in ("dt_bias", "A_log", "D")} | {f"{m}norm.weight": (inner,)}
        elif kind == "*":
            q, kv = (config[f"num_{each}_heads"] * config["head_dim"] for each in ("attention", "key_value"))
            shapes |= {f"{m}{part}_proj.weight": (rows, D) for part, rows in (("q", q), ("k", kv), ("v", kv))}
            shapes[f"{m}o_proj.weight"] = (D, q)
        elif kind == "-":
            shapes |= _mlp(m, FF, gate=False)
        else:
            shapes |= {f"{m}gate.weight": (EXPERTS, D), f"{m}gate.e_score_correction_bias": (EXPERTS,)}
            shapes |= _mlp(f"{m}shared_experts.", config["moe_shared_expert_intermediate_size"], gate=False)
            for expert in range(EXPERTS):
                shapes |= _mlp(f"{m}experts.{expert}.", config["moe_intermediate_size"], gate=False)
    return shapes
