"""The keys and values of sequences, in pages."""

from edgerun.kv.groups import Group, KvLayer, KvOptions, layer_groups, sequence_bytes
from edgerun.kv.ledger import KvLedger
from edgerun.kv.page import Page
from edgerun.kv.pages import PagePool
from edgerun.kv.sequence import KvSequence

__all__ = [
    "Group",
    "KvLayer",
    "KvLedger",
    "KvOptions",
    "KvSequence",
    "Page",
    "PagePool",
    "layer_groups",
    "sequence_bytes",
]
