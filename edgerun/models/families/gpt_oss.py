"""gpt-oss."""

from edgerun.models.families.family import Family

FAMILIES = {
    "gpt-oss": Family(
        rope="neox",
        activation="oai",
        router="softmax_topk",
        renormalise=False,
        ffn_norm="post_attention_norm",
        sinks=True,
        window_pattern=2,
    ),
}
