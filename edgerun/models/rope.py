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
_MOST_BLOCKS = 256  # of so many positions that are kept


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
    return RopeTable(angles, factor, rotation.temperature, rotation.most)


def _turns_at(turns: float, dim: int, base: float, original_context: int) -> float:
    """The dimension that turns `turns` times within the original context."""
    return dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(base))


class RopeTable:
    """Cosines and sines of positions 0, 1, 2, .., made when they are asked for. Of the positions so far only those are
    kept that were asked for last, so that endless sequences take no more memory than long ones.

    most: positions beyond are taken for this one; 0: each for itself."""

    def __init__(
        self, angles: NDArray[np.float64], factor: float, temperature: Temperature | None = None, most: int = 0
    ) -> None:
        self._angles = angles
        self._factor = factor
        self._temperature = temperature
        self._most = most
        self._made: dict[int, tuple[F32, F32]] = {}  # by number: of _POSITIONS positions, those used last at the end

    @property
    def key(self) -> str:
        """Alike for tables that turn alike."""
        what = repr((self._factor, self._temperature, *([self._most] if self._most else [])))
        return hashlib.sha256(self._angles.tobytes() + what.encode()).hexdigest()[:16]

    def at(self, start: int, tokens: int) -> tuple[F32, F32]:
        """(tokens, rope_dim / 2) each, for positions start, start + 1, .."""
        first, end = start // _POSITIONS, start + tokens
        if end <= (first + 1) * _POSITIONS and (not self._most or end <= self._most + 1):
            cos, sin = self._block(first)
            return cos[start - first * _POSITIONS :][:tokens], sin[start - first * _POSITIONS :][:tokens]
        cos, sin = np.empty((2, tokens, len(self._angles)), np.float32)
        self.gather(range(start, end), cos, sin)
        return cos, sin

    def gather(self, positions: Sequence[int], cos: F32, sin: F32) -> None:
        """cos and sin (rows, rope_dim / 2) = those of any positions."""
        for row, position in enumerate(positions):
            number, within = divmod(min(position, self._most or position), _POSITIONS)
            all_cos, all_sin = self._block(number)
            cos[row], sin[row] = all_cos[within], all_sin[within]

    def _block(self, number: int) -> tuple[F32, F32]:
        """In arrays of one size, so that how numpy vectorises them cannot depend on when they were asked for."""
        found = self._made.pop(number, None)
        if found is None:
            some = np.arange(number * _POSITIONS, (number + 1) * _POSITIONS)[:, None]
            theta, factor = some * self._angles, self._factor * self._temperature_at(some)
            found = (np.cos(theta) * factor).astype(np.float32), (np.sin(theta) * factor).astype(np.float32)
            if len(self._made) >= _MOST_BLOCKS:
                self._made.pop(next(iter(self._made)), None)
        self._made[number] = found
        return found

    def _temperature_at(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """What queries there are multiplied by besides."""
        if self._temperature is None:
            return np.ones(positions.shape)
        scale, length, offset = self._temperature.scale, self._temperature.length, self._temperature.offset
        return 1.0 + scale * np.log1p((positions + offset) // length)
