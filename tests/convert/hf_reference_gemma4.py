"""As `hf_reference`, of Gemma 4: written from transformers' modelling file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hf_reference import Array, gated, gelu, rms, rotate

NAMES = ("gate_proj", "up_proj", "down_proj")


def logits(config: dict[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    at, d, n = "model.language_model.", config["hidden_size"], config["num_hidden_layers"]
    x = w[f"{at}embed_tokens.weight"][ids] * math.sqrt(d)
    fed = config.get("hidden_size_per_layer_input", 0)
    if fed:
        own = w[f"{at}embed_tokens_per_layer.weight"][ids].reshape(len(ids), n, fed) * math.sqrt(fed)
        made = (x @ w[f"{at}per_layer_model_projection.weight"].T).reshape(len(ids), n, fed) / math.sqrt(d)
        inputs = (rms(config, made, w[f"{at}per_layer_projection_norm.weight"]) + own) / math.sqrt(2)
    kept: dict[str, tuple[Array, Array]] = {}  # of the last layer of each kind with keys and values of its own
    for layer, kind in enumerate(config["layer_types"]):
        p = f"{at}layers.{layer}."
        norm = {name: w.get(f"{p}{name}.weight") for name in _norms()}
        read = attention(config, w, f"{p}self_attn.", rms(config, x, norm["input_layernorm"]), kind, kept)
        x = x + rms(config, read, norm["post_attention_layernorm"])
        made = gated(w, f"{p}mlp.", NAMES, rms(config, x, norm["pre_feedforward_layernorm"]), gelu)
        if config.get("enable_moe_block"):
            made = rms(config, made, norm["post_feedforward_layernorm_1"])
            h = rms(config, x, norm["pre_feedforward_layernorm_2"])
            made = made + rms(config, mixture(config, w, p, x, h), norm["post_feedforward_layernorm_2"])
        x = x + rms(config, made, norm["post_feedforward_layernorm"])
        if fed:
            gate = gelu(x @ w[f"{p}per_layer_input_gate.weight"].T) * inputs[:, layer]
            x = x + rms(config, gate @ w[f"{p}per_layer_projection.weight"].T, norm["post_per_layer_input_norm"])
        x = x * w[f"{p}layer_scalar"]
    out = rms(config, x, w[f"{at}norm.weight"]) @ w[f"{at}embed_tokens.weight"].T
    cap = config["final_logit_softcapping"]
    return cap * np.tanh(out / cap)


def _norms() -> list[str]:
    feed_forward = ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    more = [f"{name}_{i}" for name in feed_forward for i in (1, 2)]
    return ["input_layernorm", "post_attention_layernorm", *feed_forward, *more, "post_per_layer_input_norm"]


def attention(
    config: dict[str, Any], w: dict[str, Array], p: str, x: Array, kind: str, kept: dict[str, tuple[Array, Array]]
) -> Array:
    n, heads, full = len(x), config["num_attention_heads"], kind == "full_attention"
    dim = config["global_head_dim" if full else "head_dim"]
    rope = config["rope_parameters"][kind]
    frequency = rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    if full:  # the first quarter of the pairs turns
        frequency = np.where(np.arange(dim // 2) < dim // 2 * rope["partial_rotary_factor"], frequency, 0)
    angles = np.outer(np.arange(n), frequency)[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    q = (x @ w[f"{p}q_proj.weight"].T).reshape(n, heads, dim)
    q = rotate(rms(config, q, w[f"{p}q_norm.weight"]), cos, sin)
    if f"{p}k_proj.weight" in w:
        k = (x @ w[f"{p}k_proj.weight"].T).reshape(n, -1, dim)
        v = (x @ w.get(f"{p}v_proj.weight", w[f"{p}k_proj.weight"]).T).reshape(n, -1, dim)
        kept[kind] = rotate(rms(config, k, w[f"{p}k_norm.weight"]), cos, sin), rms(config, v, np.ones(dim))
    k, v = (np.repeat(each, heads // each.shape[1], axis=1) for each in kept[kind])
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    hidden = (distance < 0) | ((distance >= config["sliding_window"]) & (not full))
    scores = np.where(hidden, -np.inf, np.einsum("qhd,khd->hqk", q, k))
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    read = np.einsum("hqk,khd->qhd", chances / chances.sum(-1, keepdims=True), v)
    return read.reshape(n, -1) @ w[f"{p}o_proj.weight"].T


def mixture(config: dict[str, Any], w: dict[str, Array], p: str, x: Array, h: Array) -> Array:
    """The router reads x through a norm of its own, the experts read h."""
    asked = rms(config, x, np.ones(x.shape[1])) * w[f"{p}router.scale"] / math.sqrt(x.shape[1])
    routed = asked @ w[f"{p}router.proj.weight"].T
    chances = np.exp(routed - routed.max(-1, keepdims=True))
    out = np.zeros_like(x)
    for t, row in enumerate(chances):
        chosen = np.argsort(-row)[: config["top_k_experts"]]
        for e, share in zip(chosen, row[chosen] / row[chosen].sum(), strict=True):
            gate, up = np.split(w[f"{p}experts.gate_up_proj"][e], 2)
            made = (gelu(h[t] @ gate.T) * (h[t] @ up.T)) @ w[f"{p}experts.down_proj"][e].T
            out[t] += share * w[f"{p}router.per_expert_scale"][e] * made
    return out
