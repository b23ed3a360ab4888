"""Seed-OSS."""

from edgerun.models.families.family import Family

FAMILIES = {"seed_oss": Family(rope="neox", ffn_norm="post_attention_norm")}
