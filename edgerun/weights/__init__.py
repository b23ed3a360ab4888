"""A model's matrices, wherever they are."""

from edgerun.weights.resident import ResidentStore
from edgerun.weights.store import LayerWeights, WeightStore
from edgerun.weights.streamed_experts import StreamedExpertStore

__all__ = ["LayerWeights", "ResidentStore", "StreamedExpertStore", "WeightStore"]
