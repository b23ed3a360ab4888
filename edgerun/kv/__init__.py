"""The keys and values of a sequence."""

from edgerun.kv.cache import KvCache

__all__ = ["KvCache"]
