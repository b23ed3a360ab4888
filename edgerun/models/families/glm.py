"""GLM 4 to 4.7."""

from edgerun.models.families.family import MIXTURE, Family

FAMILIES = {
    "chatglm": Family(rope="norm", fused_gate_up=True),
    "glm4": Family(rope="norm", post_norms=True, fused_gate_up=True, sections="by_file"),
    "glm4moe": Family(
        rope="neox",
        qk_norm="head",
        qk_norm_by_file=True,
        sections="by_file",
        ffn_norm="post_attention_norm",
        router="sigmoid",
        renormalise=False,
        says=MIXTURE,
    ),
}
