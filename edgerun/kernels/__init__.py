"""The operations of a decoder, and the choice among their implementations."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.events import EventSink, ignore
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.interface import (
    Activation,
    Activations,
    Expert,
    Kernels,
    Matrix,
    Neurons,
    RopeKind,
)
from edgerun.kernels.kv_formats import F16, KvFormat
from edgerun.kernels.layout import PackedSizes
from edgerun.kernels.routing import RouterKind, Routing
from edgerun.options.loading import KERNEL_NAMES, LOADING

__all__ = [
    "KERNEL_NAMES",
    "Activation",
    "Activations",
    "Expert",
    "Kernels",
    "Matrix",
    "Neurons",
    "RopeKind",
    "RouterKind",
    "Routing",
    "kernels_missing",
    "load_kernels",
    "load_sizes",
]


def load_kernels(
    name: str = "auto",
    *,
    threads: int | None = None,
    events: EventSink = ignore,
    types: Sequence[GgmlType] = (),
    neuron_types: Sequence[GgmlType] = (),
    kv: tuple[KvFormat, KvFormat] = (F16, F16),
    recurrent: bool = False,
    streams: bool = False,
    mixture: bool = False,
    ranks: bool = False,
) -> Kernels:
    """The kernels called `name`; "auto" takes the fastest that this processor runs.

    threads: how many work on each operation (default: the physical cores that this process may use).
    events: receives `Progress("compile kernels", ...)` when something must be compiled.
    types, neuron_types: of matrices and neurons that will come, kv: the formats of keys and values, recurrent: whether
    there will be recurrent layers, streams: whether several streams side by side, mixture: whether experts, ranks:
    whether it is a part of a model in a group: their kernels are made ready at once, which takes less time than later
    one by one.
    Raises UsageError for an unknown name or one that this processor cannot run.
    """
    _check(name)
    if threads is not None:
        threads = LOADING["threads"].check("threads", threads)
    if name == "reference":
        from edgerun.kernels.reference import ReferenceKernels

        return ReferenceKernels()
    from edgerun.kernels.simd_kernels import SimdKernels

    names = (
        SimdKernels.names(types, neuron_types, kv, recurrent=recurrent, streams=streams, mixture=mixture, ranks=ranks)
        if types
        else ()
    )
    return SimdKernels.load(name, threads=threads, events=events, names=names)


def load_sizes(name: str = "auto") -> PackedSizes:
    """What matrices will take in the kernels called `name`, without loading these. UsageError as `load_kernels`."""
    _check(name)
    if name == "reference":
        return PackedSizes(1)
    from edgerun.kernels.choice import choose

    return PackedSizes(choose(name).lanes)


def kernels_missing(
    name: str,
    types: Sequence[GgmlType],
    neuron_types: Sequence[GgmlType] = (),
    kv: tuple[KvFormat, KvFormat] = (F16, F16),
    recurrent: bool = False,
    streams: bool = False,
    mixture: bool = False,
    ranks: bool = False,
) -> bool:
    """Whether the kernels called `name` for matrices and neurons of these types, for keys and values in these formats,
    for recurrent layers, several streams, a mixture of experts, and a part of a model in a group, must be compiled
    before they can be used. UsageError as `load_kernels`."""
    _check(name)
    if name == "reference":
        return False
    from edgerun.kernels.simd_kernels import SimdKernels

    return SimdKernels.missing(
        name,
        SimdKernels.names(types, neuron_types, kv, recurrent=recurrent, streams=streams, mixture=mixture, ranks=ranks),
    )


def _check(name: str) -> None:
    LOADING["kernels"].check("kernels", name)
