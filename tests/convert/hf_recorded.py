"""Checkpoints whose logits transformers itself computed (tools/record_huggingface.py), each a config and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.convert.hf_checkpoint import config_of, shapes_of, write_bpe_tokenizer, write_safetensors

Shapes = dict[str, tuple[int, ...]]
D, VOCAB, HEADS, KV, HEAD, FF, FED, LAYERS = 32, 64, 4, 2, 8, 512, 12, 6
IDS = list(range(3, 43))
_KINDS = ["sliding_attention", "full_attention"]
_BASE: dict[str, Any] = {
    "hidden_size": D, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD, "vocab_size": VOCAB,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA3N: dict[str, Any] = _BASE | {
    "model_type": "gemma3n_text", "num_hidden_layers": LAYERS, "intermediate_size": [FF] * LAYERS,
    "layer_types": _KINDS * 3, "num_kv_shared_layers": 2, "sliding_window": 9, "vocab_size_per_layer_input": 60,
    "hidden_size_per_layer_input": FED, "laurel_rank": 64, "altup_num_inputs": 4, "altup_active_idx": 0,
    "altup_correct_scale": True, "activation_sparsity_pattern": [0.95, 0.9, 0.0, 0.0, 0.0, 0.0],
    "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip
QWEN3_VL_MOE: dict[str, Any] = {
    "model_type": "qwen3_vl_moe", "text_config": _BASE | {
        "model_type": "qwen3_vl_moe_text", "num_hidden_layers": 2, "intermediate_size": 48, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "hidden_act": "silu", "tie_word_embeddings": False,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                            "mrope_interleaved": True},
    },
    "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": D,
                      "deepstack_visual_indexes": [0]},
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
}  # fmt: skip


_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": D}
QWEN25_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "text_config": _BASE | {
        "model_type": "qwen2_5_vl_text", "num_hidden_layers": 2, "intermediate_size": 48, "hidden_act": "silu",
        "tie_word_embeddings": False, "use_sliding_window": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    },
    "vision_config": _VISION | {"fullatt_block_indexes": [0]},
    "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63,
}  # fmt: skip
MUSE: dict[str, Any] = {
    "model_type": "muse_glimmer", "text_config": _BASE | {
        "model_type": "muse_glimmer_text", "num_hidden_layers": 5, "intermediate_size": 48, "sliding_window": 9,
        "hidden_activation": "silu", "tie_word_embeddings": False, "final_logit_softcapping": 20.0,
        "qk_scale_factor": 3.87, "output_multiplier": 0.4, "post_norm_eps": 1e-8,
        "layer_types": [_KINDS[(4 - layer) % 4 == 0] for layer in range(5)],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "image_token_id": 60, "video_token_id": 61, "out_hidden_size": 64, "projector_hidden_size": 16,
}  # fmt: skip


def _attention(p: str, own: bool = True) -> Shapes:
    q, kv = HEADS * HEAD, KV * HEAD
    shapes: Shapes = {f"{p}q_proj.weight": (q, D), f"{p}o_proj.weight": (D, q), f"{p}q_norm.weight": (HEAD,)}
    keys: Shapes = {f"{p}k_proj.weight": (kv, D), f"{p}v_proj.weight": (kv, D), f"{p}k_norm.weight": (HEAD,)}
    return shapes | (keys if own else {})


def _gemma3n() -> Shapes:
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCAB, D),
        "model.norm.weight": (D,),
        "model.embed_tokens_per_layer.weight": (60, LAYERS * FED),
        "model.per_layer_model_projection.weight": (LAYERS * FED, D),
        "model.per_layer_projection_norm.weight": (FED,),
        **{f"model.altup_{part}projections.{i}.weight": (D, D) for part in ("", "unembed_") for i in range(3)},
    }
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        more = (*norms, "post_per_layer_input_norm", "laurel.post_laurel_norm", "altup.router_norm")
        shapes |= {f"{p}{norm}.weight": (D,) for norm in more}
        shapes |= _attention(f"{p}self_attn.", own=layer < 5)  # of two that read others' keys the first has spare ones
        shapes |= {f"{p}mlp.{part}_proj.weight": (FF, D) for part in ("gate", "up")}
        shapes |= {f"{p}mlp.down_proj.weight": (D, FF), f"{p}altup.correct_output_scale": (D,)}
        shapes |= {f"{p}altup.modality_router.weight": (4, D), f"{p}altup.prediction_coefs.weight": (16, 4)}
        shapes |= {f"{p}altup.correction_coefs.weight": (4, 4)}
        shapes |= {f"{p}laurel.linear_left.weight": (64, D), f"{p}laurel.linear_right.weight": (D, 64)}
        shapes |= {f"{p}per_layer_input_gate.weight": (FED, D), f"{p}per_layer_projection.weight": (D, FED)}
    return shapes


def _qwen3_vl_moe(*, inputs_first: bool) -> Shapes:
    at = "model.language_model."
    shapes: Shapes = {f"{at}embed_tokens.weight": (VOCAB, D), f"{at}norm.weight": (D,), "lm_head.weight": (VOCAB, D)}
    for layer in range(2):
        p = f"{at}layers.{layer}."
        shapes |= {f"{p}{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= _attention(f"{p}self_attn.") | {f"{p}mlp.gate.weight": (4, D)}
        shapes[f"{p}mlp.experts.gate_up_proj"] = (4, D, 48) if inputs_first else (4, 48, D)
        shapes[f"{p}mlp.experts.down_proj"] = (4, 24, D) if inputs_first else (4, D, 24)
    return shapes | {"model.visual.merger.weight": (4, 4)}  # which text does not need


def _plain(layers: int, norms: tuple[str, ...], *, at: str, biases: bool = False, gated: bool = False) -> Shapes:
    """Of layers of attention and a feed-forward; gated: each head's output, and nothing norms queries and keys."""
    shapes: Shapes = {f"{at}embed_tokens.weight": (VOCAB, D), f"{at}norm.weight": (D,), "lm_head.weight": (VOCAB, D)}
    for layer in range(layers):
        p = f"{at}layers.{layer}."
        shapes |= {f"{p}{norm}.weight": (D,) for norm in norms}
        of_heads = {name: shape for name, shape in _attention(f"{p}self_attn.").items() if "_norm" not in name}
        shapes |= of_heads
        if biases:
            shapes |= {
                name.replace("weight", "bias"): shape[:1] for name, shape in of_heads.items() if "o_proj" not in name
            }
        if gated:
            shapes[f"{p}self_attn.gate_proj.weight"] = (HEADS * HEAD, D)
        shapes |= {f"{p}mlp.{part}_proj.weight": (48, D) for part in ("gate", "up")}
        shapes[f"{p}mlp.down_proj.weight"] = (D, 48)
    return shapes


_PRE = ("input_layernorm", "post_attention_layernorm")
_PRE_AND_POST = (*_PRE, "pre_feedforward_layernorm", "post_feedforward_layernorm")
RECORDED: dict[str, tuple[dict[str, Any], Shapes]] = {
    "gemma3n": (GEMMA3N, _gemma3n()),
    "qwen3_vl_moe": (QWEN3_VL_MOE, _qwen3_vl_moe(inputs_first=True)),  # as published
    **{
        name: (config, {each.replace("model.language_model.", "model."): n for each, n in shapes_of(config).items()})
        for name, config in (("gemma4", config_of("gemma4_text")), ("gemma4_moe", config_of("gemma4_moe_text")))
    },
    "qwen2_5_vl": (QWEN25_VL, _plain(2, _PRE, at="model.language_model.", biases=True)),
    "muse_glimmer": (MUSE, _plain(5, _PRE_AND_POST, at="model.language_model.", gated=True)),
    "qwen3_vl_moe-saved": (QWEN3_VL_MOE, _qwen3_vl_moe(inputs_first=False)),  # as transformers 5 saves it
}


def write_recorded(folder: Path, name: str) -> None:
    """The checkpoint of that name, always the same."""
    config, shapes = RECORDED[name]
    rng = np.random.default_rng(7)
    weights: dict[str, NDArray[np.float32]] = {}
    for each, shape in shapes.items():
        gain = 0.03 if "prediction_coefs" in each else 0.3
        is_vector = len(shape) == 1
        data = 1 + 0.2 * rng.standard_normal(shape) if is_vector else gain * rng.standard_normal(shape)
        weights[each] = data.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", weights)
    write_bpe_tokenizer(folder)
