"""Names of models -> files: aliases, paths and Hugging Face repositories, downloaded once and kept."""

from edgerun.hub.cache import CachedModel, find_cached, list_models, remove
from edgerun.hub.cards import Card, embedded_model, load_cards
from edgerun.hub.download import pull
from edgerun.hub.info import ModelInfo, show
from edgerun.hub.resolve import resolve

__all__ = [
    "CachedModel",
    "Card",
    "ModelInfo",
    "embedded_model",
    "find_cached",
    "list_models",
    "load_cards",
    "pull",
    "remove",
    "resolve",
    "show",
]
