"""The model families of Hugging Face that edgerun converts, declared. Adding one is an entry in FAMILIES."""

from __future__ import annotations

from typing import Any

from edgerun.convert.hf_family import Family
from edgerun.convert.hf_gemma3n import gemma3n_outside, gemma3n_shapes, gemma3n_values, prepare_gemma3n
from edgerun.convert.hf_gemma4 import gemma4_outside, gemma4_shapes, gemma4_values, prepare_gemma4, spare_keys
from edgerun.convert.hf_gpt_oss import gpt_oss_values, prepare_gpt_oss
from edgerun.convert.hf_hybrids import (
    DELTA_FOLDS,
    lfm2_values,
    lfm2moe_values,
    ministral3_values,
    prepare_lfm2,
    prepare_qwen35,
    qwen35_values,
    section_values,
)
from edgerun.convert.hf_latent import keys_of, latent_shapes, latent_values, prepare_latent, values_of
from edgerun.convert.hf_muse import MUSE_FOLDS, muse_norms, muse_shapes, muse_values
from edgerun.convert.hf_nemotron import NEMOTRON_FOLDS, nemotron_shapes, nemotron_values, prepare_nemotron

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_QWEN2_VL = Family(
    "qwen2vl",
    {**_PRE_NORMS, **_ATTENTION, **_MLP},
    biases=True,
    unread=("visual.", "model.visual."),
    requires={"hidden_act": ("silu", "swish"), "use_sliding_window": (False,)},
    values=lambda config: section_values(config, (16, 24, 24)),
)
_SHORT_CONVOLUTION = {
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
}
_DELTA_NET = {
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
_LFM2_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
}
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_SHARED = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}


SPARSE_ACTIVATIONS = ("relu", "relu2")
_SILU = {"hidden_act": ("silu", "swish")}
_MOE_STEP: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)}

_LLAMA = Family(
    "llama", {**_PRE_NORMS, **_ATTENTION, **_MLP}, permute_qk=True, biases=True, sparse=True, requires=_SILU
)
_GEMMA3 = Family(
    "gemma3",
    {**_GEMMA_NORMS, **_ATTENTION, **_QK_NORMS, **_MLP},
    norm_plus_one=True,
    sliding_window=True,
    softcaps=True,
    tied_by_default=True,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
    },
    requires={"hidden_activation": ("gelu_pytorch_tanh",), "sliding_window_pattern": (6,)},
    wide_scale_layers=62,
)

_SHARED_EXPERTS = {f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
_LATENT: dict[str, Any] = {
    "mixers": {
        "direct": {"self_attn.q_proj": "attn_q"},
        "low_rank": {
            "self_attn.q_a_proj": "attn_q_a",
            "self_attn.q_a_layernorm": "attn_q_a_norm",
            "self_attn.q_b_proj": "attn_q_b",
        },
    },
    "also": {"attn_v_b": "self_attn.kv_b_proj"},
    "leading": ("first_k_dense_replace", _MLP),
    "experts": _EXPERTS,
    "requires": {**_SILU, "attention_bias": (False,), "rope_interleave": (True,), "moe_layer_freq": (1,)},
    "prepare": prepare_latent,
    "values": latent_values,
    "shapes": latent_shapes,
    "folds": {"attn_k_b": keys_of, "attn_v_b": values_of},
}
_LATENT_LAYER = {
    **_PRE_NORMS,
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_k_b",
    "self_attn.o_proj": "attn_output",
}
_CHOICE = "mlp.gate.e_score_correction_bias"
_DEEPSEEK3 = Family(
    "deepseek2",
    _LATENT_LAYER,
    mixture={"mlp.gate": "ffn_gate_inp", _CHOICE: "exp_probs_b.bias", **_SHARED_EXPERTS},
    bare=(_CHOICE,),
    defaults={"scoring_func": "sigmoid", "norm_topk_prob": True},
    **_LATENT,
)
_NEMOTRON: dict[str, Any] = {
    "layer": {"norm": "attn_norm"},
    "mixers": {
        "mamba": {
            "mixer.in_proj": "ssm_in",
            "mixer.conv1d": "ssm_conv1d",
            "mixer.conv1d.bias": "ssm_conv1d.bias",
            "mixer.dt_bias": "ssm_dt.bias",
            "mixer.A_log": "ssm_a",
            "mixer.D": "ssm_d",
            "mixer.norm": "ssm_norm",
            "mixer.out_proj": "ssm_out",
        },
        "attention": {f"mixer.{part}_proj": f"attn_{part}" for part in "qkv"} | {"mixer.o_proj": "attn_output"},
        "mlp": {"mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down"},
        "moe": {
            "mixer.gate": "ffn_gate_inp",
            "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
            "mixer.shared_experts.up_proj": "ffn_up_shexp",
            "mixer.shared_experts.down_proj": "ffn_down_shexp",
        },
    },
    "bare": (
        *("mixer.conv1d.bias", "mixer.dt_bias", "mixer.A_log", "mixer.D"),
        "mixer.gate.e_score_correction_bias",
    ),
    "unread": ("mtp.",),
    "embedding": "embeddings",
    "final_norm": ("norm_f", "output_norm"),
    "requires": {
        "mlp_hidden_act": ("relu2",),
        "mamba_hidden_act": _SILU["hidden_act"],
        "use_conv_bias": (True,),
        "moe_latent_size": (None,),
        **dict.fromkeys(("use_bias", "attention_bias", "mlp_bias", "mamba_proj_bias"), (False,)),
    },
    "prepare": prepare_nemotron,
    "values": nemotron_values,
    "shapes": nemotron_shapes,
    "folds": NEMOTRON_FOLDS,
}

_GEMMA4_ATTENTION = {
    f"self_attn.{theirs}": ours
    for theirs, ours in (("q_proj", "attn_q"), ("o_proj", "attn_output"), ("q_norm", "attn_q_norm"))
}
_GEMMA4_KEYS = {"self_attn.k_proj": "attn_k", "self_attn.k_norm": "attn_k_norm"}
_GEMMA4_ALL = {**_GEMMA4_ATTENTION, **_GEMMA4_KEYS, "self_attn.v_proj": "attn_v"}
_GEMMA4_LAYER = {**_GEMMA_NORMS, **_MLP, "layer_scalar": "layer_output_scale.weight"}
_GEMMA4: dict[str, Any] = {
    "mixers": {
        "full": _GEMMA4_ALL,
        "sliding": _GEMMA4_ALL,
        "full of keys": {**_GEMMA4_ATTENTION, **_GEMMA4_KEYS},
        "full shared": _GEMMA4_ATTENTION,
        "sliding shared": _GEMMA4_ATTENTION,
    },
    "fed": {
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    },
    "bare": ("layer_scalar", "router.scale", "router.per_expert_scale"),
    "unread": ("model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
    "sliding_window": True,
    "tied_by_default": True,
    "requires": {"hidden_activation": ("gelu_pytorch_tanh",)},
    "prepare": prepare_gemma4,
    "values": gemma4_values,
    "shapes": gemma4_shapes,
    "outside": gemma4_outside,
    "spare": spare_keys,
}
_ALTUP = {
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.correct_output_scale": "altup_correct_scale.weight",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}

_LFM2_NORMS = {"operator_norm": "attn_norm", "ffn_norm": "ffn_norm"}
_LFM2_MLP = {"feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up"}
_LFM2_REQUIRES: dict[str, tuple[Any, ...]] = {"conv_bias": (False,), "hidden_act": ("silu", "swish")}
_LFM2: dict[str, Any] = {
    "mixers": {"conv": _SHORT_CONVOLUTION, "full_attention": _LFM2_ATTENTION},
    "final_norm": ("embedding_norm", "token_embd_norm"),
    "tied_by_default": True,
    "prepare": prepare_lfm2,
}
_DELTA_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}
_DELTA_REQUIRES = {**_SILU, "attn_output_gate": (True,)}
_DELTA: dict[str, Any] = {
    "mixers": {"linear_attention": _DELTA_NET, "full_attention": {**_ATTENTION, **_QK_NORMS}},
    "bare": ("linear_attn.A_log", "linear_attn.dt_bias"),
    "unread": ("mtp.", "model.visual."),
    "norm_plus_one": True,
    "prepare": prepare_qwen35,
    "values": qwen35_values,
    "folds": DELTA_FOLDS,
}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Family(
        "llama",
        {**_PRE_NORMS, **_ATTENTION, "block_sparse_moe.gate": "ffn_gate_inp"},
        experts={"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
        experts_at="block_sparse_moe.experts",
        permute_qk=True,
        requires=_SILU,
    ),
    "qwen2": Family("qwen2", {**_PRE_NORMS, **_ATTENTION, **_MLP}, biases=True, sparse=True, requires=_SILU),
    "qwen3": Family("qwen3", {**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, **_MLP}, sparse=True, requires=_SILU),
    "qwen2_moe": Family(
        "qwen2moe",
        {**_PRE_NORMS, **_ATTENTION, "mlp.gate": "ffn_gate_inp", **_SHARED},
        experts=_EXPERTS,
        biases=True,
        requires={**_SILU, **_MOE_STEP, "norm_topk_prob": (False,)},
    ),
    "qwen3_moe": Family(
        "qwen3moe",
        {**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, "mlp.gate": "ffn_gate_inp"},
        experts=_EXPERTS,
        requires={**_SILU, **_MOE_STEP, "norm_topk_prob": (True,)},
    ),
    "olmoe": Family(
        "olmoe",
        {**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, "mlp.gate": "ffn_gate_inp"},
        experts=_EXPERTS,
        requires={**_SILU, "norm_topk_prob": (False,), "clip_qkv": (None,)},
    ),
    "phi3": Family(
        "phi3",
        {
            **_PRE_NORMS,
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        sliding_window=True,
        requires=_SILU,
    ),
    "gemma2": Family(
        "gemma2",
        {**_GEMMA_NORMS, **_ATTENTION, **_MLP},
        norm_plus_one=True,
        sliding_window=True,
        softcaps=True,
        tied_by_default=True,
        defaults={
            "head_dim": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
        },
        requires={"hidden_activation": ("gelu_pytorch_tanh",)},
        wide_scale_layers=46,
    ),
    "lfm2": Family("lfm2", {**_LFM2_NORMS, **_LFM2_MLP}, requires=_LFM2_REQUIRES, values=lfm2_values, **_LFM2),
    "lfm2_moe": Family(
        "lfm2moe",
        _LFM2_NORMS,
        leading=("num_dense_layers", _LFM2_MLP),
        mixture={"feed_forward.gate": "ffn_gate_inp", "feed_forward.expert_bias": "exp_probs_b.bias"},
        experts={"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
        experts_at="feed_forward.experts",
        bare=("feed_forward.expert_bias",),
        requires={
            **_LFM2_REQUIRES,
            "norm_topk_prob": (True,),
            "use_expert_bias": (True,),
            "routed_scaling_factor": (1.0, 1),
        },
        values=lfm2moe_values,
        **_LFM2,
    ),
    "gpt_oss": Family(
        "gpt-oss",
        {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            **_ATTENTION,
            "self_attn.sinks": "attn_sinks.weight",
            "mlp.router": "ffn_gate_inp",
        },
        bare=("self_attn.sinks",),
        fused_experts=True,
        quantised_as="mxfp4",
        sliding_window=True,
        biases=True,
        requires={**_SILU, "swiglu_limit": (7.0,), "attention_bias": (True,)},
        prepare=prepare_gpt_oss,
        values=gpt_oss_values,
    ),
    "deepseek_v2": Family(
        "deepseek2",
        _LATENT_LAYER,
        mixture={"mlp.gate": "ffn_gate_inp", **_SHARED_EXPERTS},
        defaults={"scoring_func": "softmax"},
        **_LATENT,
    ),
    "deepseek_v3": _DEEPSEEK3,
    "kimi_k2": _DEEPSEEK3,
    "glm4_moe_lite": _DEEPSEEK3,
    "nemotron_h": Family("nemotron_h", **_NEMOTRON),
    "nemotron_h_moe": Family(
        "nemotron_h_moe",
        experts={"up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"},
        experts_at="mixer.experts",
        **_NEMOTRON,
    ),
    "qwen3_vl_text": Family(
        "qwen3vl",
        {**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, **_MLP},
        unread=("model.visual.",),
        requires=_SILU,
        values=section_values,
    ),
    "qwen3_vl_moe_text": Family(
        "qwen3vlmoe",
        {**_PRE_NORMS, **_ATTENTION, **_QK_NORMS, "mlp.gate": "ffn_gate_inp"},
        experts=_EXPERTS,
        unread=("model.visual.",),
        requires={**_SILU, **_MOE_STEP, "norm_topk_prob": (True,)},
        values=section_values,
    ),
    "ministral3": Family(
        "mistral3",
        {**_PRE_NORMS, **_ATTENTION, **_MLP},
        permute_qk=True,
        requires=_SILU,
        values=ministral3_values,
    ),
    "qwen3_5_text": Family("qwen35", {**_DELTA_NORMS, **_MLP}, requires=_DELTA_REQUIRES, **_DELTA),
    "qwen3_5_moe_text": Family(
        "qwen35moe",
        {**_DELTA_NORMS, "mlp.gate": "ffn_gate_inp", **_SHARED},
        experts=_EXPERTS,
        requires={**_DELTA_REQUIRES, "norm_topk_prob": (True,)},
        **_DELTA,
    ),
    "gemma3n_text": Family(
        "gemma3n",
        {**_GEMMA_NORMS, **_MLP, **_ALTUP},
        mixers={each: _GEMMA4["mixers"][each] for each in ("full", "sliding", "full shared", "sliding shared")},
        fed=_GEMMA4["fed"],
        bare=("altup.correct_output_scale",),
        unread=_GEMMA4["unread"],
        sliding_window=True,
        tied_by_default=True,
        requires={
            **_GEMMA4["requires"],
            "laurel_rank": (64,),
            "altup_active_idx": (0,),
            "altup_correct_scale": (True,),
        },
        prepare=prepare_gemma3n,
        values=gemma3n_values,
        shapes=gemma3n_shapes,
        outside=gemma3n_outside,
        spare=spare_keys,
    ),
    "muse_glimmer_text": Family(
        "muse-glimmer",
        {**_GEMMA_NORMS, **_ATTENTION, "self_attn.gate_proj": "attn_gate", **_MLP},
        permute_qk=True,
        sliding_window=True,
        unread=("model.vision_adapter.", "model.vision_projection."),
        requires={"hidden_activation": _SILU["hidden_act"], "attention_bias": (False,), "post_norm_eps": (1e-8,)},
        values=muse_values,
        shapes=muse_shapes,
        folds=MUSE_FOLDS,
        numbers=muse_norms,
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _QWEN2_VL),
    "gemma4_text": Family("gemma4", _GEMMA4_LAYER, **_GEMMA4),
    "gemma4_unified_text": Family("gemma4", _GEMMA4_LAYER, **_GEMMA4),
    "gemma4_moe_text": Family(
        "gemma4",
        {
            **_GEMMA4_LAYER,
            "router.proj": "ffn_gate_inp",
            "router.scale": "ffn_gate_inp.scale",
            "router.per_expert_scale": "ffn_down_exps.scale",
            "post_feedforward_layernorm_1": "post_ffw_norm_1",
            "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
            "post_feedforward_layernorm_2": "post_ffw_norm_2",
        },
        experts=_EXPERTS,
        experts_at="experts",
        **_GEMMA4,
    ),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
}
