"""What a Hugging Face checkpoint computes, in plain numpy: the yardstick for converted files.

Written from transformers' modelling files, straight from config.json and the checkpoint's own tensor names,
so that it shares nothing with the conversion: full attention, float64, one sequence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NORMED = (  # queries and keys, head by head
    *("qwen3", "qwen3_vl_text", "qwen3_moe", "gemma3_text", "lfm2", "lfm2_moe", "qwen3_5_text", "qwen3_5_moe_text"),
)


def logits(config: dict[str, Any], weights: dict[str, NDArray[np.float32]], ids: list[int]) -> Array:
    """(tokens, vocab) f64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    if config["model_type"].startswith("lfm2"):
        return lfm2_logits({**config, "rms_norm_eps": config["norm_eps"]}, w, ids)
    import hf_reference_gemma4  # here, since they are built of parts of this file
    import hf_reference_more

    if config["model_type"] in hf_reference_more.LATENT:
        return hf_reference_more.latent_logits(config, w, ids)
    if config["model_type"] == "gemma4_text":
        return hf_reference_gemma4.logits(config, w, ids)
    if config["model_type"] == "nemotron_h":
        return hf_reference_more.nemotron_logits(config, w, ids)
    gemma = config["model_type"].startswith("gemma")
    plus = gemma or config["model_type"].startswith("qwen3_5")
    x = w["model.embed_tokens.weight"][ids]  # (tokens, d)
    if gemma:
        x = x * math.sqrt(config["hidden_size"])
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        names = ("input_layernorm", "post_attention_layernorm")
        if gemma:
            names += ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        norms = [w[f"{p}{name}.weight"] + plus for name in names]
        h = rms(config, x, norms[0])
        if f"{p}linear_attn.A_log" in w:
            attended = delta_net(config, w, f"{p}linear_attn.", h)
        else:
            attended = attention(config, w, f"{p}self_attn.", h, layer)
        if gemma:
            x = x + rms(config, attended, norms[1])
            x = x + rms(config, ffn(config, w, p, rms(config, x, norms[2])), norms[3])
        else:
            x = x + attended
            x = x + ffn(config, w, p, rms(config, x, norms[1]))
    x = rms(config, x, w["model.norm.weight"] + plus)
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    out = x @ head.T
    return 30.0 * np.tanh(out / 30.0) if config["model_type"] == "gemma2" else out


def lfm2_logits(config: dict[str, Any], w: dict[str, Array], ids: list[int]) -> Array:
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = rms(config, x, w[f"{p}operator_norm.weight"])
        if f"{p}self_attn.q_proj.weight" in w:
            renamed = dict(w)
            for ours, theirs in (("o_proj", "out_proj"), ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")):
                renamed[f"{p}self_attn.{ours}.weight"] = w[f"{p}self_attn.{theirs}.weight"]
            x = x + attention(config, renamed, f"{p}self_attn.", h, layer)
        else:
            b, c, values = np.split(h @ w[f"{p}conv.in_proj.weight"].T, 3, axis=-1)
            x = x + (c * convolved(b * values, w[f"{p}conv.conv.weight"][:, 0])) @ w[f"{p}conv.out_proj.weight"].T
        h = rms(config, x, w[f"{p}ffn_norm.weight"])
        if f"{p}feed_forward.gate.weight" in w:
            x = x + lfm2_experts(config, w, f"{p}feed_forward.", h)
        else:
            x = x + gated(w, f"{p}feed_forward.", ("w1", "w3", "w2"), h, silu)
    return rms(config, x, w["model.embedding_norm.weight"]) @ w["model.embed_tokens.weight"].T


def gpt_oss_ffn(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    scores = x @ w[f"{p}mlp.router.weight"].T + w[f"{p}mlp.router.bias"]
    out = np.zeros_like(x)
    for t, row in enumerate(scores):
        chosen = np.argsort(-row)[: config["num_experts_per_tok"]]
        shares = np.exp(row[chosen] - row[chosen].max())
        for e, share in zip(chosen, shares / shares.sum(), strict=True):
            both = x[t] @ w[f"{p}mlp.experts.gate_up_proj"][e] + w[f"{p}mlp.experts.gate_up_proj_bias"][e]
            gate, up = np.minimum(both[0::2], 7.0), np.clip(both[1::2], -7.0, 7.0)
            hidden = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            down = hidden @ w[f"{p}mlp.experts.down_proj"][e] + w[f"{p}mlp.experts.down_proj_bias"][e]
            out[t] += share * down
    return out


def lfm2_experts(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    scores = 1 / (1 + np.exp(-(x @ w[f"{p}gate.weight"].T)))
    out = np.zeros_like(x)
    for t, row in enumerate(scores):
        chosen = np.argsort(-(row + w[f"{p}expert_bias"]))[: config["num_experts_per_tok"]]
        for e, share in zip(chosen, row[chosen] / row[chosen].sum(), strict=True):
            out[t] += share * gated(w, f"{p}experts.{e}.", ("w1", "w3", "w2"), x[t], silu)
    return out


def convolved(x: Array, taps: Array) -> Array:
    """Each column of x (n, c) with its own taps (c, k), the last of which meets the present."""
    n, k = len(x), taps.shape[1]
    before = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
    return np.stack([(before[t : t + k] * taps.T).sum(0) for t in range(n)])


def delta_net(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    """After transformers' torch_recurrent_gated_delta_rule: value heads beside each other share a key head."""
    key_heads, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    dim, value_dim, n = config["linear_key_head_dim"], config["linear_value_head_dim"], len(x)
    mixed = convolved(x @ w[f"{p}in_proj_qkv.weight"].T, w[f"{p}conv1d.weight"][:, 0])
    mixed = mixed / (1 + np.exp(-mixed))
    q, k, v = np.split(mixed, [key_heads * dim, 2 * key_heads * dim], axis=-1)
    q, k = (
        np.repeat(each / np.sqrt((each * each).sum(-1, keepdims=True) + 1e-6), heads // key_heads, axis=1)
        for each in (q.reshape(n, key_heads, dim), k.reshape(n, key_heads, dim))
    )
    v = v.reshape(n, heads, value_dim)
    beta = 1 / (1 + np.exp(-(x @ w[f"{p}in_proj_b.weight"].T)))
    decay = -np.exp(w[f"{p}A_log"]) * np.log1p(np.exp(x @ w[f"{p}in_proj_a.weight"].T + w[f"{p}dt_bias"]))
    state, out = np.zeros((heads, dim, value_dim)), np.zeros((n, heads, value_dim))
    for t in range(n):
        state = state * np.exp(decay[t])[:, None, None]
        change = (v[t] - np.einsum("hd,hdv->hv", k[t], state)) * beta[t][:, None]
        state = state + k[t][:, :, None] * change[:, None, :]
        out[t] = np.einsum("hd,hdv->hv", q[t], state) / math.sqrt(dim)
    z = (x @ w[f"{p}in_proj_z.weight"].T).reshape(n, heads, value_dim)
    normed = rms(config, out, w[f"{p}norm.weight"]) * (z / (1 + np.exp(-z)))
    return normed.reshape(n, -1) @ w[f"{p}out_proj.weight"].T


def rms(config: dict[str, Any], x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def attention(config: dict[str, Any], w: dict[str, Array], p: str, x: Array, layer: int) -> Array:
    kind, n_heads, n_kv = config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]
    dim, n = config.get("head_dim", config["hidden_size"] // n_heads), len(x)
    if kind == "phi3":
        rows = w[f"{p}qkv_proj.weight"]
        q, k, v = np.split(x @ rows.T, [n_heads * dim, (n_heads + n_kv) * dim], axis=-1)
    else:
        q, k, v = (x @ w[f"{p}{c}_proj.weight"].T + w.get(f"{p}{c}_proj.bias", 0.0) for c in "qkv")
    plus = kind in ("gemma3_text", "qwen3_5_text", "qwen3_5_moe_text")
    gate: Array | float = 1.0
    if kind.startswith("qwen3_5"):
        q, gate = np.split(q.reshape(n, n_heads, 2 * dim), 2, axis=-1)
        gate = 1 / (1 + np.exp(-gate.reshape(n, -1)))
    if kind == "olmoe":
        q, k = rms(config, q, w[f"{p}q_norm.weight"]), rms(config, k, w[f"{p}k_norm.weight"])
    q, k, v = q.reshape(n, n_heads, dim), k.reshape(n, n_kv, dim), v.reshape(n, n_kv, dim)
    if kind in NORMED:
        q = rms(config, q, w[f"{p}q_norm.weight"] + plus)
        k = rms(config, k, w[f"{p}k_norm.weight"] + plus)
    cos, sin = rotations(config, dim, n, layer)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if kind == "ministral3":
        rope = config["rope_parameters"]
        grown = np.log(1 + np.floor(np.arange(n) / rope["original_max_position_embeddings"]))
        q = q * (1 + rope["llama_4_scaling_beta"] * grown)[:, None, None]
    k, v = np.repeat(k, n_heads // n_kv, axis=1), np.repeat(v, n_heads // n_kv, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * config.get("query_pre_attn_scalar", dim) ** -0.5
    if kind == "gemma2":
        scores = 50.0 * np.tanh(scores / 50.0)
    if kind == "gpt_oss":
        sinks = np.broadcast_to(w[f"{p}sinks"][:, None, None], (n_heads, n, 1))
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    masked = distance < 0
    if kind == "gemma3_text" or (kind in ("gemma2", "gpt_oss") and layer % 2 == 0):
        masked |= distance >= config["sliding_window"]
    scores = np.where(masked, -np.inf, scores)
    if kind == "gpt_oss":
        scores = np.concatenate([scores, sinks], axis=-1)
    chances = np.exp(scores - scores.max(-1, keepdims=True))
    chances = (chances / chances.sum(-1, keepdims=True))[..., :n]
    return (np.einsum("hqk,khd->qhd", chances, v).reshape(n, -1) * gate) @ w[f"{p}o_proj.weight"].T + w.get(
        f"{p}o_proj.bias", 0.0
    )


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    n = 2 * cos.shape[-1]
    first, second = np.split(x[..., :n], 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., n:]], axis=-1)


def rotations(config: dict[str, Any], dim: int, n: int, layer: int) -> tuple[Array, Array]:
    """cos and sin, (tokens, 1, dim / 2)."""
    dim = int(dim * config.get("rope_parameters", {}).get("partial_rotary_factor", 1))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base, scale = config["rope_theta"], 1.0
    kind = scaling.get("rope_type", scaling.get("type"))
    if config["model_type"] == "gemma3_text" and (layer + 1) % 6:
        base, kind = config["rope_local_base_freq"], None
    frequency = base ** (-np.arange(0, dim, 2) / dim)
    original = scaling.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if kind == "linear":
        frequency = frequency / scaling["factor"]
    elif kind == "llama3":
        wavelength = 2 * np.pi / frequency
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
        frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    elif kind == "longrope":
        frequency = frequency / np.array(scaling["long_factor"])
        ratio = config["max_position_embeddings"] / original
        scale = math.sqrt(1 + math.log(ratio) / math.log(original))
    elif kind == "yarn":
        edges = [dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1)]
        low, high = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        frequency = frequency / scaling["factor"] * ramp + frequency * (1 - ramp)
        scale = scaling.get("attention_factor", 0.1 * math.log(scaling["factor"]) + 1)
        scale = 1.0 if "mscale_all_dim" in scaling else scale  # the same for both: they cancel
    angles = np.outer(np.arange(n), frequency)[:, None, :]
    return np.cos(angles) * scale, np.sin(angles) * scale


def ffn(config: dict[str, Any], w: dict[str, Array], p: str, x: Array) -> Array:
    kind = config["model_type"]
    if kind == "phi3":
        gate, up = np.split(x @ w[f"{p}mlp.gate_up_proj.weight"].T, 2, axis=-1)
        return (silu(gate) * up) @ w[f"{p}mlp.down_proj.weight"].T
    if kind == "gpt_oss":
        return gpt_oss_ffn(config, w, p, x)
    if kind == "mixtral":
        return experts(config, w, x, f"{p}block_sparse_moe.", ("w1", "w3", "w2"), renormalise=True)
    names = ("gate_proj", "up_proj", "down_proj")
    if "num_experts" not in config:
        activation = {"relu": relu, "relu2": lambda x: relu(x) ** 2}.get(config.get("hidden_act", ""), silu)
        return gated(w, f"{p}mlp.", names, x, gelu if kind.startswith("gemma") else activation)
    out = experts(config, w, x, f"{p}mlp.", names, renormalise=config["norm_topk_prob"])
    if "shared_expert_intermediate_size" in config:
        opened = 1 / (1 + np.exp(-x @ w[f"{p}mlp.shared_expert_gate.weight"].T))
        out = out + opened * gated(w, f"{p}mlp.shared_expert.", names, x, silu)
    return out


def experts(
    config: dict[str, Any],
    w: dict[str, Array],
    x: Array,
    p: str,
    names: tuple[str, ...],
    *,
    renormalise: bool,
) -> Array:
    if f"{p}experts.gate_up_proj" in w:  # all experts in one tensor
        for e, both in enumerate(w[f"{p}experts.gate_up_proj"]):
            gate, up = np.split(both, 2)
            w |= {f"{p}experts.{e}.{name}.weight": part for name, part in zip(names, (gate, up), strict=False)}
            w[f"{p}experts.{e}.{names[2]}.weight"] = w[f"{p}experts.down_proj"][e]
    routed = x @ w[f"{p}gate.weight"].T
    chances = np.exp(routed - routed.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for token, row in enumerate(chances):
        chosen = np.argsort(-row)[: config["num_experts_per_tok"]]
        share = row[chosen] / row[chosen].sum() if renormalise else row[chosen]
        for expert, weight in zip(chosen, share, strict=True):
            out[token] += weight * gated(w, f"{p}experts.{expert}.", names, x[token], silu)
    return out


def gated(w: dict[str, Array], p: str, names: tuple[str, ...], x: Array, activation: Any) -> Array:
    gate, up, down = (w[f"{p}{name}.weight"] for name in names)
    return (activation(x @ gate.T) * (x @ up.T)) @ down.T


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
