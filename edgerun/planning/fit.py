"""What a resident model will take of memory, and whether that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgerun.device import MemoryLimits
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import TensorInfo
from edgerun.units import format_size

# Numba, LLVM and the kernels: 60 MiB measured when they come from the cache, more when they are compiled.
_RUNTIME_BYTES = 160 << 20
_CHUNK = 256  # tokens of a prompt in flight
_SMALLEST_CONTEXT = 256  # not worth advising less


class Shape(Protocol):
    """Of `models.ModelSpec`."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim_k(self) -> int: ...
    @property
    def head_dim_v(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class Fit:
    """Bytes that a model needs: weights, keys and values of a full context, and what running them takes."""

    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


def estimate_memory(tensors: Mapping[str, TensorInfo], shape: Shape, context: int) -> Fit:
    """What a resident model takes. Packed weights are as large as in the file; input embeddings stay there,
    unless they are the output head too; keys and values are f16."""
    resident = {name: info.n_bytes for name, info in tensors.items()}
    if "output.weight" in resident:
        resident.pop("token_embd.weight", None)
    kv = 2 * (shape.head_dim_k + shape.head_dim_v) * shape.n_kv_heads * shape.n_layers * context
    # A chunk's activations (a dozen arrays of the model's width), one chunk's logits for one row,
    # and the tensor that is being packed, whose pages in the file count until they are dropped.
    scratch = _CHUNK * shape.d_model * 4 * 12 + shape.vocab_size * 4 * 2
    overhead = _RUNTIME_BYTES + scratch + max(resident.values(), default=0)
    return Fit(sum(resident.values()), kv, overhead)


def check_fit(name: str, fit: Fit, memory: MemoryLimits, context: int) -> None:
    """DoesNotFitError when `fit` is more than is available; the message says what would do."""
    available = memory.available_bytes
    if fit.total_bytes <= available:
        return
    left_for_kv = available - fit.weights_bytes - fit.overhead_bytes
    possible = left_for_kv * context // fit.kv_bytes if fit.kv_bytes else 0
    if possible >= _SMALLEST_CONTEXT:
        advice = f"a context of {possible // 64 * 64} would fit"
    elif memory.limit_bytes >= fit.total_bytes:
        advice = "close other programs, or take a smaller quantisation"
    else:
        room = available - fit.overhead_bytes
        size = f" of at most {format_size(room)}" if room > 0 else ""
        advice = f"take a smaller model or quantisation{size}"
    group = "" if memory.cgroup_limit_bytes is None else " under this process's memory limit"
    kv_size, overhead_size = format_size(fit.kv_bytes), format_size(fit.overhead_bytes)
    raise DoesNotFitError(
        f"{name} needs {format_size(fit.total_bytes)} of memory (weights {format_size(fit.weights_bytes)}, "
        f"KV cache of {context} tokens {kv_size}, overhead {overhead_size}), "
        f"but {format_size(available)} is available{group}; {advice}"
    )
