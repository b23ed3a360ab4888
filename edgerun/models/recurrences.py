"""The numbers of recurrent layers, read from GGUF metadata."""

from __future__ import annotations

import numpy as np

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
    if heads % groups or inner % heads or (family.recurrence == "delta" and inner != heads * size):
        raise FormatError(
            f"impossible numbers: {name}.ssm has {heads} heads of {groups} groups, an inner size of {inner} and a "
            f"state size of {size}"
        )
    if 4 * (inner * size + taps * (inner + 2 * groups * size)) > _MOST_BYTES:
        raise FormatError(f"impossible numbers: the state of one layer of {name} would take more than 1 GiB")
    found: list[Recurrence | None] = []
    for layer, recurrent in enumerate(_recurrent(n, layers)):
        tensors = {part for part in ("ssm_in", "ssm_ba") if f"blk.{layer}.{part}.weight" in gguf.tensors}
        numbers = Recurrence(taps, heads, groups, size, inner // heads, "ssm_in" in tensors, "ssm_ba" in tensors)
        found.append(numbers if recurrent else None)
    return found


def _recurrent(n: Numbers, layers: int) -> list[bool]:
    """Which layers are: by the file, or all but every fourth (or so)."""
    key = "attention.recurrent_layers"
    value = n.raw(key)
    if value is None:
        interval = n.integer("full_attention_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(value, np.ndarray) or value.dtype != np.bool_ or len(value) < layers:
        raise FormatError(f"{n.name(key)} must be {layers} truths, got {value!r}")
    return [bool(each) for each in value[:layers]]
