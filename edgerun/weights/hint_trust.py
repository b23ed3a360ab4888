"""Whether hints are worth the reads that they begin, layer by layer."""

from __future__ import annotations

_LEAST_PRECISION = 0.6  # of the reads that hints began, those that must have been of use; less costs more than it gains
_MEMORY = 16  # reads over which that is averaged, layer by layer
_RETRY = 32  # hints after which a layer whose hints were bad is given another chance


class HintTrust:
    """How many of the reads that hints began were of use lately."""

    def __init__(self, layers: int) -> None:
        self._precision = [1.0] * layers
        self._distrusted = [0] * layers  # hints that were turned away

    def was_used(self, layer: int) -> None:
        """What a hint had read was asked for."""
        self._precision[layer] += (1.0 - self._precision[layer]) / _MEMORY

    def was_wasted(self, layer: int) -> None:
        """The layer passed without asking for what a hint had read."""
        self._precision[layer] -= self._precision[layer] / _MEMORY

    def are_worth(self) -> list[bool]:
        """Of each layer, whether hints have been worth their reads."""
        return [precision >= _LEAST_PRECISION for precision in self._precision]

    def allows(self, layer: int) -> bool:
        """Whether hints for this layer have been worth their reads; now and then they may show that they are again."""
        if self._precision[layer] >= _LEAST_PRECISION:
            return True
        self._distrusted[layer] = (self._distrusted[layer] + 1) % _RETRY
        return self._distrusted[layer] == 0
