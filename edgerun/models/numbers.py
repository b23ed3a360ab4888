"""Numbers of a model's metadata, typed and bounded before anything is allocated from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.errors import FormatError, UnsupportedError

_LIMITS = {  # generous, but they keep a hostile file from asking for the moon
    "block_count": 1024,
    "nextn_predict_layers": 1024,
    "embedding_length": 1 << 20,
    "embedding_length_per_layer_input": 1 << 16,
    "context_length": 1 << 28,
    "feed_forward_length": 1 << 22,
    "attention.head_count": 4096,
    "attention.head_count_kv": 4096,
    "attention.key_length": 8192,
    "attention.value_length": 8192,
    "attention.key_length_mla": 8192,
    "attention.value_length_mla": 8192,
    "attention.temperature_length": 1 << 28,
    "attention.q_lora_rank": 1 << 16,
    "attention.kv_lora_rank": 1 << 16,
    "attention.key_length_swa": 8192,
    "attention.value_length_swa": 8192,
    "attention.shared_kv_layers": 1024,
    "rope.dimension_count": 8192,
    "ssm.conv_kernel": 64,
    "ssm.state_size": 4096,
    "ssm.group_count": 4096,
    "ssm.time_step_rank": 4096,
    "ssm.inner_size": 1 << 20,
    "full_attention_interval": 1024,
    "rope.dimension_count_swa": 8192,
    "altup.num_inputs": 64,
    "altup.active_idx": 64,
    "expert_count": 4096,
    "expert_used_count": 4096,
    "expert_feed_forward_length": 1 << 22,
    "expert_shared_feed_forward_length": 1 << 22,
    "attention.sliding_window": 1 << 28,
    "attention.sliding_window_pattern": 1024,
    "expert_gating_func": 1 << 16,
    "expert_shared_count": 4096,
    "expert_group_count": 4096,
    "expert_group_used_count": 4096,
    "leading_dense_block_count": 1024,
    "interleave_moe_layer_step": 1024,
    "moe_latent_size": 1 << 20,
    "rope.scaling.original_context_length": 1 << 28,
    "shortconv.l_cache": 64,
}


class Numbers:
    """Metadata under the architecture's prefix. meaningless: keys that are read as if the file did not have them."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str, meaningless: frozenset[str] = frozenset()) -> None:
        self._metadata = metadata
        self._prefix = prefix
        self._meaningless = meaningless

    def name(self, key: str) -> str:
        """Of a number, in full."""
        return f"{self._prefix}.{key}"

    def raw(self, key: str) -> Any:
        """As it lies in the file; None: the file does not have it."""
        return None if key in self._meaningless else self._metadata.get(self.name(key))

    def _value(self, key: str) -> Any:
        value = self.raw(key)
        if isinstance(value, list):
            raise FormatError(f"{self.name(key)} must be a number, got {len(value)} strings")
        if isinstance(value, np.ndarray):  # one a layer, all alike in the models that edgerun runs
            values = np.unique(value)
            if len(values) == 0:
                raise FormatError(f"{self.name(key)} must be a number, got an array of none")
            if len(values) > 1:
                raise UnsupportedError(f"{self.name(key)} differs between layers: {values[:8].tolist()}")
            return values[0].item()
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._value(key)
        if value is None:
            if default is None:
                raise FormatError(f"the file lacks {self.name(key)}")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise FormatError(f"{self.name(key)} must be an integer, got {value!r}")
        if not least <= int(value) <= _LIMITS[key]:
            raise FormatError(f"{self.name(key)} is {value}; expected {least} to {_LIMITS[key]}")
        return int(value)

    def by_layer(self, key: str, layers: int, default: Sequence[int] | None = None, least: int = 1) -> list[int]:
        """One integer a layer: the file says one for all or an array of as many (default: `default`)."""
        value = self.raw(key)
        if not isinstance(value, np.ndarray) or len(value) == 0:
            if value is None and default is not None:
                return list(default)
            return [self.integer(key, None, least)] * layers
        if value.dtype.kind not in "iu":
            raise FormatError(f"{self.name(key)} must be integers, got an array of {value.dtype}")
        if len(value) < layers:
            raise FormatError(f"{self.name(key)} has {len(value)} numbers for {layers} layers")
        for each in value.tolist():
            if not least <= each <= _LIMITS[key]:
                raise FormatError(f"{self.name(key)} has {each}; expected {least} to {_LIMITS[key]}")
        return [int(each) for each in value.tolist()[:layers]]

    def truths(self, key: str, layers: int, default: bool | None = None) -> list[bool]:
        """One truth a layer (default: `default` for all); some converters write integers."""
        value = self.raw(key)
        if value is None and default is not None:
            return [default] * layers
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biu":
            raise FormatError(f"{self.name(key)} must be an array of truths, got {value!r}")
        if len(value) < layers:
            raise FormatError(f"{self.name(key)} has {len(value)} truths for {layers} layers")
        return [bool(each) for each in value[:layers]]

    def reals(self, key: str, layers: int, default: Sequence[float]) -> list[float]:
        """One number a layer: the file has as many (default: `default`)."""
        value = self.raw(key)
        if value is None:
            return list(default)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or len(value) < layers:
            raise FormatError(f"{self.name(key)} must be {layers} numbers, got {value!r}")
        return [float(each) for each in value[:layers]]

    def real(self, key: str, default: float) -> float:
        value = self._value(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise FormatError(f"{self.name(key)} must be a number, got {value!r}")
        if not np.isfinite(value):
            raise FormatError(f"{self.name(key)} is {value}")
        return float(value)

    def truth(self, key: str, default: bool) -> bool:
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, (bool, np.bool_)):
            raise FormatError(f"{self.name(key)} must be true or false, got {value!r}")
        return bool(value)

    def text(self, key: str, default: str) -> str:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise FormatError(f"{self.name(key)} must be a string, got {value!r}")
        return value
