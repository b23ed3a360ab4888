"""DeepSeek's mixtures and those built like them: shared experts, some dense layers before; from V2 on latent attention
(GLM-4.7-Flash, Kimi K2, Kanana 2, GigaChat 3, Mistral Small 4)."""

from dataclasses import replace

from edgerun.models.families.family import LOG_MULTIPLIER, MIXTURE, Family

_LATENT = Family(
    rope="norm",
    latent_attention=True,
    renormalise=False,
    sigmoid_sizes=((47, 154880), (48, 154880)),
    says=MIXTURE | LOG_MULTIPLIER,
    unused={  # ik_llama.cpp's files have both forms
        r"blk\.(0|[1-9][0-9]*)\.attn_(k|v)_b\.weight": "the halves of attn_kv_b, which is there whole",
    },
)

FAMILIES = {
    "deepseek2": _LATENT,
    "mistral4": replace(_LATENT, latent_rotation_grows=True),
    "deepseek": Family(rope="norm", renormalise=False, says=frozenset({"expert_weights_scale"})),
    "dots1": Family(rope="neox", qk_norm="head", renormalise=False, says=MIXTURE),
}
