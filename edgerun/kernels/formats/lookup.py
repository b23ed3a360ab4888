"""A grid as kernels look it up: several weights by one code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Lookup:
    """`numbers`: (words, width) u8, the letters' numbers; `letters`: what they stand for, below 128. `signed`: signs
    are put on afterwards (`ops.emitter.Emitter.with_signs`)."""

    numbers: NDArray[np.uint8]
    letters: tuple[int, ...]
    signed: bool

    @property
    def width(self) -> int:
        """Letters of a word."""
        return int(self.numbers.shape[1])

    @property
    def values(self) -> NDArray[np.uint8]:
        """(words, width) u8."""
        return np.array(self.letters, np.uint8)[self.numbers]
