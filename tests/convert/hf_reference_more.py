"""As `hf_reference`, of families whose layers are built otherwise: latent attention, Mamba-2."""

from __future__ import annotations

from typing import Any

import numpy as np
from hf_reference import Array, convolved, gated, relu, rms, silu

LATENT = ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite")


def turned(x: Array, base: float) -> Array:
    """Neighbours of x (n, heads, dim) rotate together."""
    n, dim = len(x), x.shape[-1]
    angles = np.outer(np.arange(n), base ** (-np.arange(0, dim, 2) / dim))[:, None]
    first, second = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = first * np.cos(angles) - second * np.sin(angles)
    out[..., 1::2] = second * np.cos(angles) + first * np.sin(angles)
    return out


def causal(q: Array, k: Array, v: Array, scale: float) -> Array:
    """(n, heads * value) of q, k (n, heads, dim) and v (n, heads, value)."""
    n = len(q)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    scores = np.where(np.arange(n)[:, None] < np.arange(n)[None, :], -np.inf, scores)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", chances / chances.sum(-1, keepdims=True), v).reshape(n, -1)


def latent_attention(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    """As the checkpoint has it: every head's keys and values are made."""
    n, heads = len(x), config["num_attention_heads"]
    plain, rotated, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    if config["q_lora_rank"]:
        low = rms(config, x @ w[f"{p}q_a_proj.weight"].T, w[f"{p}q_a_layernorm.weight"])
        q = low @ w[f"{p}q_b_proj.weight"].T
    else:
        q = x @ w[f"{p}q_proj.weight"].T
    q = q.reshape(n, heads, plain + rotated)
    kv = x @ w[f"{p}kv_a_proj_with_mqa.weight"].T
    latent = rms(config, kv[:, :rank], w[f"{p}kv_a_layernorm.weight"])
    both = (latent @ w[f"{p}kv_b_proj.weight"].T).reshape(n, heads, -1)
    key = np.repeat(turned(kv[:, None, rank:], config["rope_theta"]), heads, axis=1)
    q = np.concatenate([q[..., :plain], turned(q[..., plain:], config["rope_theta"])], axis=-1)
    k = np.concatenate([both[..., :plain], key], axis=-1)
    read = causal(q, k, both[..., plain:], (plain + rotated) ** -0.5)
    return read @ w[f"{p}o_proj.weight"].T


def chosen_experts(config: dict[str, Any], scores: Array, bias: Array | float) -> list[tuple[int, float]]:
    """Of one row's scores, those that are used, and their weights."""
    order = np.argsort(-(scores + bias), kind="stable")[: config["num_experts_per_tok"]]
    weights = scores[order]
    if config.get("norm_topk_prob"):
        weights = weights / weights.sum()
    return [(int(e), float(weight)) for e, weight in zip(order, weights * config["routed_scaling_factor"], strict=True)]


def mixture(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    names = ("gate_proj", "up_proj", "down_proj")
    routed, bias = x @ w[f"{p}gate.weight"].T, w.get(f"{p}gate.e_score_correction_bias")
    if bias is None:
        scores = np.exp(routed - routed.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-routed))
    out = gated(w, f"{p}shared_experts.", names, x, silu)
    for t, row in enumerate(scores):
        for e, weight in chosen_experts(config, row, 0.0 if bias is None else bias):
            out[t] += weight * gated(w, f"{p}experts.{e}.", names, x[t], silu)
    return out


def latent_logits(config: dict[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        x = x + latent_attention(config, w, f"{p}self_attn.", rms(config, x, w[f"{p}input_layernorm.weight"]))
        h = rms(config, x, w[f"{p}post_attention_layernorm.weight"])
        if layer < config["first_k_dense_replace"]:
            x = x + gated(w, f"{p}mlp.", ("gate_proj", "up_proj", "down_proj"), h, silu)
        else:
            x = x + mixture(config, w, f"{p}mlp.", h)
    return rms(config, x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def mamba(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    """Mamba-2, a row after another; the norm goes over each group's columns."""
    n, heads, dim = len(x), config["mamba_num_heads"], config["mamba_head_dim"]
    groups, size = config["n_groups"], config["ssm_state_size"]
    inner = heads * dim
    z, mixed, steps = np.split(x @ w[f"{p}in_proj.weight"].T, [inner, 2 * inner + 2 * groups * size], axis=-1)
    mixed = silu(convolved(mixed, w[f"{p}conv1d.weight"][:, 0]) + w[f"{p}conv1d.bias"])
    values, b, c = np.split(mixed, [inner, inner + groups * size], axis=-1)
    values = values.reshape(n, heads, dim)
    b, c = (np.repeat(each.reshape(n, groups, size), heads // groups, axis=1) for each in (b, c))
    steps = np.log1p(np.exp(steps + w[f"{p}dt_bias"]))
    decay = np.exp(-np.exp(w[f"{p}A_log"]) * steps)
    state, out = np.zeros((heads, dim, size)), np.empty((n, heads, dim))
    for t in range(n):
        state = state * decay[t][:, None, None] + (steps[t][:, None] * values[t])[:, :, None] * b[t][:, None]
        out[t] = np.einsum("hds,hs->hd", state, c[t]) + w[f"{p}D"][:, None] * values[t]
    normed = (out.reshape(n, -1) * silu(z)).reshape(n, groups, -1)
    normed = normed / np.sqrt((normed * normed).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
    return (normed.reshape(n, -1) * w[f"{p}norm.weight"]) @ w[f"{p}out_proj.weight"].T


def nemotron_attention(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    """Without any rotation."""
    n, heads, shared, dim = len(x), config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q, k, v = ((x @ w[f"{p}{c}_proj.weight"].T).reshape(n, -1, dim) for c in "qkv")
    k, v = (np.repeat(each, heads // shared, axis=1) for each in (k, v))
    return causal(q, k, v, dim**-0.5) @ w[f"{p}o_proj.weight"].T


def ungated(w: dict[str, Array], p: str, x: Array) -> Array:
    return relu(x @ w[f"{p}up_proj.weight"].T) ** 2 @ w[f"{p}down_proj.weight"].T


def nemotron_mixture(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    scores = 1 / (1 + np.exp(-(x @ w[f"{p}gate.weight"].T)))
    out = ungated(w, f"{p}shared_experts.", x)
    for t, row in enumerate(scores):
        for e, weight in chosen_experts(config, row, w[f"{p}gate.e_score_correction_bias"]):
            out[t] += weight * ungated(w, f"{p}experts.{e}.", x[t])
    return out


def nemotron_logits(config: dict[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    made = {**config, "rms_norm_eps": config["layer_norm_epsilon"]}
    x = w["backbone.embeddings.weight"][ids]
    kinds = {"M": mamba, "*": nemotron_attention, "E": nemotron_mixture}
    for layer, kind in enumerate(config["hybrid_override_pattern"]):
        p = f"backbone.layers.{layer}."
        h = rms(made, x, w[f"{p}norm.weight"])
        x = x + (ungated(w, f"{p}mixer.", h) if kind == "-" else kinds[kind](made, w, f"{p}mixer.", h))
    return rms(made, x, w["backbone.norm_f.weight"]) @ w["lm_head.weight"].T
