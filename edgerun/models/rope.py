"""Rotary position embedding as tables of cosines and sines.

Every scaling comes down to one frequency for each pair of dimensions and one factor for all: linear (Chen et al.
2023), YaRN (Peng et al. 2023), and per-dimension factors from the file (Llama 3.x `rope_freqs`, Phi-3 LongRoPE).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgerun.models.spec import RopeScaling, Rotation, Temperature

F32 = NDArray[np.float32]

_POSITIONS = 512  # computed together


def frequencies(
    dim: int, base: float, scaling: RopeScaling, factors: F32 | None = None
) -> tuple[NDArray[np.float64], float]:
    """Angles per position, (dim / 2,), and what cosine and sine are multiplied by."""
    plain = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if factors is not None:
        plain = plain / factors.astype(np.float64)
    if scaling.kind == "linear":
        return plain / scaling.factor, scaling.attention_factor
    if scaling.kind == "yarn":
        low = max(0.0, math.floor(_turns_at(scaling.beta_fast, dim, base, scaling.original_context)))
        high = min(dim - 1.0, math.ceil(_turns_at(scaling.beta_slow, dim, base, scaling.original_context)))
        ramp = np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0.0, 1.0)
        mixed = plain / scaling.factor * ramp + plain * (1.0 - ramp)
        return mixed, scaling.attention_factor * _magnitude(scaling)
    return plain, scaling.attention_factor


def _magnitude(scaling: RopeScaling) -> float:
    """What YaRN multiplies queries and keys by, unless the model does it elsewhere (`log_multiplier`, DeepSeek V2)."""

    def grown(slope: float) -> float:
        return 1.0 + 0.1 * slope * math.log(scaling.factor) if scaling.factor > 1.0 else 1.0

    return grown(1.0) / grown(scaling.log_multiplier) if scaling.log_multiplier else grown(1.0)


def table_of(rotation: Rotation, factors: F32 | None) -> RopeTable:
    """Of a rotation; factors: the file's."""
    angles, factor = frequencies(rotation.dim, rotation.base, rotation.scaling, factors if rotation.from_file else None)
    if rotation.still:
        angles = np.zeros_like(angles)
    return RopeTable(angles, factor, rotation.temperature)


def _turns_at(turns: float, dim: int, base: float, original_context: int) -> float:
    """The dimension that turns `turns` times within the original context."""
    return dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(base))


class RopeTable:
    """Cosines and sines of positions 0, 1, 2, .., grown as they are asked for."""

    def __init__(self, angles: NDArray[np.float64], factor: float, temperature: Temperature | None = None) -> None:
        self._angles = angles
        self._factor = factor
        self._temperature = temperature
        empty = np.empty((0, len(angles)), np.float32)
        self._both = empty, empty  # replaced together, so that none is without the other

    @property
    def key(self) -> str:
        """Alike for tables that turn alike."""
        return hashlib.sha256(self._angles.tobytes() + repr((self._factor, self._temperature)).encode()).hexdigest()[
            :16
        ]

    def at(self, start: int, tokens: int) -> tuple[F32, F32]:
        """(tokens, rope_dim / 2) each, for positions start, start + 1, .."""
        end = start + tokens
        self._grow_to(end)
        cos, sin = self._both
        return cos[start:end], sin[start:end]

    def gather(self, positions: Sequence[int], cos: F32, sin: F32) -> None:
        """cos and sin (rows, rope_dim / 2) = those of any positions."""
        self._grow_to(max(positions) + 1)
        all_cos, all_sin = self._both
        for row, position in enumerate(positions):
            cos[row], sin[row] = all_cos[position], all_sin[position]

    def _grow_to(self, end: int) -> None:
        known = len(self._both[0])
        if end > known:
            self._grow(max(end, 2 * known))

    def _grow(self, positions: int) -> None:
        """In arrays of one size, so that how numpy vectorises them cannot depend on when more were asked for."""
        known_cos, known_sin = self._both
        known = len(known_cos)
        positions = -(-positions // _POSITIONS) * _POSITIONS
        cos, sin = np.empty((2, positions, len(self._angles)), np.float32)
        cos[:known], sin[:known] = known_cos, known_sin
        for first in range(known, positions, _POSITIONS):
            some = np.arange(first, first + _POSITIONS)[:, None]
            theta, factor = some * self._angles, self._factor * self._temperature_at(some)
            cos[first : first + _POSITIONS] = np.cos(theta) * factor
            sin[first : first + _POSITIONS] = np.sin(theta) * factor
        self._both = cos, sin

    def _temperature_at(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """What queries there are multiplied by besides."""
        if self._temperature is None:
            return np.ones(positions.shape)
        scale, length, offset = self._temperature.scale, self._temperature.length, self._temperature.offset
        return 1.0 + scale * np.log1p((positions + offset) // length)
