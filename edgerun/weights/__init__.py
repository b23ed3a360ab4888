"""A model's matrices, wherever they are."""

from edgerun.weights.resident import ResidentStore
from edgerun.weights.store import LayerWeights, WeightStore

__all__ = ["LayerWeights", "ResidentStore", "WeightStore"]
