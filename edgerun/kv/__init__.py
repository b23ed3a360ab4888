"""The keys and values of a sequence."""

from edgerun.kv.cache import KvCache
from edgerun.kv.ledger import Grant, KvLedger, unlimited

__all__ = ["Grant", "KvCache", "KvLedger", "unlimited"]
