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
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v2": _LATENT | {"q_lora_rank": None, "norm_topk_prob": False, "scoring_func": "softmax"},
    "deepseek_v3": _LATENT | {"norm_topk_prob": True, "scoring_func": "sigmoid"},
    "glm4_moe_lite": _LATENT | {"norm_topk_prob": True, "num_attention_heads": 3, "num_nextn_predict_layers": 1},
    "nemotron_h": _NEMOTRON | {"hybrid_override_pattern": "M-*-"},
    "nemotron_h_moe": _NEMOTRON | {
        "hybrid_override_pattern": "ME*E", "n_routed_experts": EXPERTS, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Names and shapes as transformers saves them."""
    return _nemotron(config) if config["model_type"].startswith("nemotron") else _latent(config)


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
