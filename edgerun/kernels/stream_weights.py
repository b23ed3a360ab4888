"""How much of one stream goes into another, as a row asks for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StreamWeights:
    """weights[t] = coefficients @ tanh(asked[t] * scale), computed by the operation that is given this: `asked` becomes
    that tanh, and `weights` are written."""

    asked: F32  # (T, S)
    coefficients: F32  # (n, S): n = S * S where streams are mixed, S where they are corrected
    scale: float
    weights: F32  # (T, n)
