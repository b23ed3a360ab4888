"""What a model holds of a sequence, as its layers' plans say: keys and values in pages, which grow with it; recurrent
states in blocks, which do not."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from edgerun.kv import Group, KvOptions, States, layer_groups, sequence_bytes, state_layouts
from edgerun.kv.states import block_bytes, sequence_blocks
from edgerun.models.plan import plan_of
from edgerun.models.spec import ModelSpec


@lru_cache(maxsize=16)
def kv_groups(spec: ModelSpec, kv: KvOptions | None = None) -> tuple[Group, ...]:
    """Layers whose keys and values lie in pages together. UnsupportedError for heads that cannot be kept so."""
    return layer_groups([layer.mixer.kv for layer in plan_of(spec)], kv)


def kv_bytes(spec: ModelSpec, positions: int, at_once: int | None = None, kv: KvOptions | None = None) -> int:
    """Memory for the keys and values of a sequence that grows by `at_once` positions at most (all)."""
    return sequence_bytes(kv_groups(spec, kv), positions, positions if at_once is None else at_once)


def common_kv_bytes(spec: ModelSpec, positions: int, kv: KvOptions | None = None) -> int:
    """Of `kv_bytes` what every device of a group needs all of: a position's one vector, which all heads read."""
    kept = [layer.mixer.kv for layer in plan_of(spec)]
    groups = layer_groups([each if each is not None and each.in_keys else None for each in kept], kv)
    return sequence_bytes(groups, positions, positions)


@lru_cache(maxsize=16)
def states_of(spec: ModelSpec) -> States:
    """Of each layer that has states, its place in a block."""
    layouts = state_layouts([layer.mixer.state for layer in plan_of(spec)])
    whole = replace(spec, layers=spec.whole, shard=None)
    model_bytes = block_bytes(layouts) if spec.shard is None or not layouts else states_of(whole).model_bytes
    return States(layouts, model_bytes)


def state_bytes(spec: ModelSpec, positions: int) -> int:
    """Memory for the states of a sequence with its checkpoints, of which a long one has no more than a few; 0 for a
    model without."""
    states = states_of(spec)
    n_bytes = block_bytes(states.layouts)
    return sequence_blocks(states.model_bytes, positions) * n_bytes if n_bytes else 0
