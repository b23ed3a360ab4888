"""The keys and values of sequences, in pages, and the states of recurrent layers, in blocks."""

from edgerun.kv.groups import Group, KvLayer, KvOptions, layer_groups, sequence_bytes
from edgerun.kv.ledger import KvLedger
from edgerun.kv.page import Page
from edgerun.kv.pages import PagePool
from edgerun.kv.sequence import KvSequence
from edgerun.kv.states import StateLayer, States, state_layouts

__all__ = [
    "States",
    "Group",
    "KvLayer",
    "KvLedger",
    "KvOptions",
    "KvSequence",
    "Page",
    "PagePool",
    "StateLayer",
    "layer_groups",
    "sequence_bytes",
    "state_layouts",
]
