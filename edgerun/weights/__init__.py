"""A model's matrices, wherever they are."""

from edgerun.weights.catalog import Catalog, make_catalog
from edgerun.weights.resident import ResidentStore
from edgerun.weights.store import LayerWeights, WeightStore
from edgerun.weights.streamed_experts import StreamedExpertStore
from edgerun.weights.streamed_layers import StreamedLayerStore

__all__ = [
    "Catalog",
    "LayerWeights",
    "ResidentStore",
    "StreamedExpertStore",
    "StreamedLayerStore",
    "WeightStore",
    "make_catalog",
]
