"""The numbers of recurrent layers, read from GGUF metadata."""

from __future__ import annotations

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgufFile
from edgerun.models.families import Family
from edgerun.models.numbers import Numbers
from edgerun.models.spec import Recurrence

_MOST_BYTES = 1 << 30  # of one layer's state: no model comes near


def recurrences_of(gguf: GgufFile, n: Numbers, family: Family, layers: int) -> list[Recurrence | None]:
    """Of every layer, None for those that are not recurrent. Raises FormatError for impossible numbers."""
    if family.recurrence == "none":
        return [None] * layers
    taps, heads = n.integer("ssm.conv_kernel", None, 2), n.integer("ssm.time_step_rank")
    groups, size, inner = n.integer("ssm.group_count"), n.integer("ssm.state_size"), n.integer("ssm.inner_size")
    name = gguf.architecture
    if heads % groups or inner % heads or inner % groups or (family.recurrence == "delta" and inner != heads * size):
        raise FormatError(
            f"impossible numbers: {name}.ssm has {heads} heads of {groups} groups, an inner size of {inner} and a "
            f"state size of {size}"
        )
    if 4 * (inner * size + taps * (inner + 2 * groups * size)) > _MOST_BYTES:
        raise FormatError(f"impossible numbers: the state of one layer of {name} would take more than 1 GiB")
    found: list[Recurrence | None] = []
    packings = ("ssm_in", "ssm_ba") if family.recurrence == "delta" else ()
    for layer, recurrent in enumerate(_recurrent(n, family, layers)):
        tensors = {part for part in packings if f"blk.{layer}.{part}.weight" in gguf.tensors}
        packed = "ssm_in" in tensors, "ssm_ba" in tensors
        turn = groups if family.tiled_heads else 1
        numbers = Recurrence(taps, heads, groups, size, inner // heads, *packed, turn)
        found.append(numbers if recurrent else None)
    return found


def _recurrent(n: Numbers, family: Family, layers: int) -> list[bool]:
    """Which layers are: with Mamba those that have neither heads of keys nor, where a layer is one block, a
    feed-forward; else by the file, or all but every fourth (or so)."""
    if family.mixers_beside:
        return [True] * layers
    if family.recurrence == "mamba":
        kv_heads = n.by_layer("attention.head_count_kv", layers, [1] * layers, 0)
        d_ff = n.by_layer("feed_forward_length", layers, [0] * layers, 0) if family.single_blocks else [0] * layers
        return [not shared and not columns for shared, columns in zip(kv_heads, d_ff, strict=True)]
    key = "attention.recurrent_layers"
    if n.raw(key) is None:
        interval = n.integer("full_attention_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    return n.truths(key, layers)
