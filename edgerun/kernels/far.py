"""What a window leaves behind and is seen nevertheless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Far:
    """The first positions of a sequence, which are seen whatever the window, by queries of their own: q (T, heads,
    head_dim), as if they stood nearer to them than they do (StreamingLLM, Xiao et al. 2024)."""

    positions: int
    q: NDArray[np.float32]
