"""gpt-oss."""

from edgerun.models.families.family import LOCAL_BASE, Family

FAMILIES = {
    "gpt-oss": Family(
        rope="neox",
        activation="oai",
        router="softmax_topk",
        renormalise=False,
        ffn_norm="post_attention_norm",
        sinks=True,
        window_pattern=2,
        says=LOCAL_BASE,
    ),
}
