"""What a device that is paired, and hostile, can make another one do: nothing but end the job."""

from __future__ import annotations

import itertools
import socket
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.local import local_group
from edgerun.cluster.lockstep import Lockstep
from edgerun.cluster.mirror import (
    Follower,
    SaidBackStates,
    SaidCopy,
    SaidPass,
    SaidRun,
    SaidStates,
    SaidTable,
    SaidWantStates,
    parsed,
)
from edgerun.cluster.peers import Peers
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import HEADER, Link, patience
from edgerun.cluster.wire_format import wire_format
from edgerun.errors import DoesNotFitError, EdgerunError, FormatError, LostPeerError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.states import StateLayout
from edgerun.kv import KvLedger, PagePool, States
from edgerun.kv.groups import KvLayer, layer_groups

CAPACITY = 2 * KEYS_PER_PAGE
F32_CODE = wire_format("f32").code


def said(**changes: object) -> SaidPass:
    """A pass of three positions, in pages of two groups, with changes."""
    tables = [SaidTable(1, 0, [1]), SaidTable(1, 1, [2])]
    return msgspec.structs.replace(SaidPass([SaidRun(1, 0, 3)], [2], False, tables, [], [], [], []), **changes)


def follower() -> Follower:
    """Of a model whose groups have pages of 1 and of 4 heads."""
    groups = layer_groups([KvLayer(1, 32, 32), KvLayer(4, 32, 32, window=64)])
    return Follower(PagePool(groups, KvLedger(None)), CAPACITY)


def test_no_pass_leads_kernels_out_of_the_pages_of_its_group() -> None:
    wrong = [
        (said(tables=[]), "no page"),
        (said(tables=[SaidTable(1, 0, [1])]), "no page"),
        (said(tables=[SaidTable(1, 0, [1]), SaidTable(1, 1, [0])]), "no page"),
        (said(tables=[SaidTable(1, 0, [1]), SaidTable(1, 1, [1])]), "in a table of group 1"),  # too small for it
        (said(copies=[SaidCopy(1, 3, 1)]), "its group does not hold"),
        (said(copies=[SaidCopy(0, 2, 1)]), "in a table of group 1|does not hold"),
        (said(copies=[SaidCopy(2, 4, 1)]), "a group that is none"),
        (said(tables=[SaidTable(1, -1, [1])]), "a group that is none"),
        (said(tables=[SaidTable(1, 0, [1] * 3)]), "more than 2 pages"),
        (said(runs=[SaidRun(1, 300, 3)]), "no page"),  # sees what is before it
        (said(runs=[SaidRun(1, CAPACITY - 2, 3)]), "positions"),
        (said(runs=[SaidRun(1, -1, 3)]), "positions"),
        (said(runs=[SaidRun(1, 0, -3)]), "positions"),
        (said(runs=[SaidRun(1, 0, 1 << 50)]), "positions"),
        (said(runs=[SaidRun(1, 0, 1), SaidRun(1, 1, 1)], wanted=[]), "two stretches"),
        (said(runs=[], wanted=[]), "without rows"),
        (said(wanted=[3]), "logits of others"),
    ]
    for each, why in wrong:
        with pytest.raises(FormatError, match=why):
            follower().task(each)
    assert follower().task(said()).runs[0].rows == 3


def test_no_pass_leads_kernels_out_of_blocks_of_states() -> None:
    states = States({0: StateLayout(3, 8, 2, 4, 4, 0)}, 1 << 10)
    groups = layer_groups([KvLayer(1, 32, 32), KvLayer(4, 32, 32, window=64)])

    def told(positions: list[int], blocks: list[int], **changes: object) -> SaidPass:
        return said(states=[SaidStates(1, positions, blocks)], **changes)

    later = {"runs": [SaidRun(1, 100, 3)]}
    wrong = [
        (said(), "without the states"),
        (said(states=[SaidStates(1, [3], [7])] * 2), "without the states"),
        (said(states=[SaidStates(2, [3], [7])]), "with states after"),
        (told([], []), "with states after"),
        (told([2], [7]), "with states after"),  # the last row would find nothing to write
        (told([0, 3], [7, 8]), "with states after"),
        (told([-1, 3], [7, 8]), "with states after"),
        (told([2, 1, 3], [7, 8, 9]), "with states after"),
        (told([3, CAPACITY], [7, 8]), "with states after"),
        (told([CAPACITY + 1], [7]), "with states after"),
        (told([99, 103], [7, 8], **later), "with states after"),
        (told([3], [7, 8]), "twice"),
        (told([1, 3], [7, 7]), "twice"),
    ]
    for each, why in wrong:
        with pytest.raises(FormatError, match=why):
            Follower(PagePool(groups, KvLedger(None), states), CAPACITY).task(each)
    with pytest.raises(FormatError, match="that the model has not"):
        follower().task(told([3], [7]))
    one = Follower(PagePool(groups, KvLedger(None), states), CAPACITY)
    for each in (told([3], [7]), told([1, 2, 3], [7, 8, 9]), told([CAPACITY], [7]), told([100, 103], [7, 8], **later)):
        task = one.task(each)
        (run,) = task.runs
        table = run.sequence.states.rows(run.start, run.rows)
        assert table[:, 1].all(), "every row has a block to write"
    with pytest.raises(DoesNotFitError):
        Follower(PagePool(groups, KvLedger(10 << 20), States({0: StateLayout(3, 8, 2, 4, 1 << 20, 0)}, 1)), 64).task(
            told([3], [7])
        )


def test_no_head_reads_or_writes_states_beyond_a_block() -> None:
    """A block that it spoke of is nothing until it is written, and has as many bytes as the shard's states."""
    one = Follower(PagePool([], KvLedger(None), States({0: StateLayout(3, 8, 2, 4, 4, 0)}, 1 << 10)), CAPACITY)
    n_bytes = one.state_pieces(SaidWantStates(7, 1))[0].stop
    for pieces in (0, -1, 1 << 11):
        with pytest.raises(FormatError, match="pieces"):
            one.state_pieces(SaidWantStates(7, pieces))
    with pytest.raises(FormatError, match="nobody spoke of"):
        one.states(7)
    one.task(SaidPass([SaidRun(1, 0, 3)], [2], False, [], [], [], [], [SaidStates(1, [3], [7])]))
    assert not one.states(7).any() and one.states(7).size == n_bytes
    edges = [(each.start, each.stop) for each in one.state_pieces(SaidBackStates(8, 5))]
    assert edges[0][0] == 0 and edges[-1][1] == n_bytes
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(edges))
    one.write_states(8, np.ones(n_bytes, np.uint8))
    assert one.states(8).all() and not one.states(7).any()
    large = Follower(PagePool([], KvLedger(None), States({0: StateLayout(0, 0, 1, 1 << 12, 1 << 13, 0)}, 1)), CAPACITY)
    with pytest.raises(FormatError, match="pieces"):
        large.state_pieces(SaidWantStates(7, 1))


def test_passes_that_are_none_are_refused() -> None:
    message = msgspec.msgpack.encode(said())
    assert parsed(message) == said()
    rng = np.random.default_rng(0)
    for _ in range(300):
        garbled = bytearray(message[: rng.integers(1, len(message) + 1)])
        for at in rng.integers(0, len(garbled), 3):
            garbled[at] = rng.integers(256)
        try:
            follower().task(parsed(bytes(garbled)))
        except EdgerunError:
            continue


def frame(n_bytes: int, *, magic: bytes = b"eR", version: int = 1, code: int = F32_CODE, call: int = 1) -> bytes:
    return HEADER.pack(magic, version, code, n_bytes, call)


@pytest.mark.parametrize(
    "data",
    [
        frame(16, magic=b"xx") + bytes(16),
        frame(16, version=2) + bytes(16),
        frame(16, code=99) + bytes(16),
        frame(16, call=2) + bytes(16),  # another step: replayed, or left out
        frame(12) + bytes(12),
        frame(0xFFFFFFFF),
        frame(16)[:7],
        bytes(400),
    ],
)
def test_a_frame_that_is_not_the_next_one_ends_the_group(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    peers = Peers(0, 2, {1: Link(ours, 1)}, wire_format("f32"), patience(5))
    group = LinkedCollective(peers, Way("star"))
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(LostPeerError):
        group.all_reduce(np.ones(4, np.float32))
    group.close()
    theirs.close()


@pytest.mark.parametrize("n_bytes", [15, 0xFFFFFFFC])
def test_what_is_gathered_is_whole_numbers_and_not_too_many(n_bytes: int) -> None:
    ours, theirs = socket.socketpair()
    group = LinkedCollective(Peers(0, 2, {1: Link(ours, 1)}, wire_format("f32"), patience(5)), Way("star"))
    theirs.sendall(frame(n_bytes) + bytes(15))
    with pytest.raises(LostPeerError):
        group.gather(np.ones(4, np.float32))
    group.close()
    theirs.close()


@pytest.mark.parametrize("n_told", [0, 3, 5 + 3, 5 + 6])
def test_logits_are_those_of_the_vocabulary(n_told: int) -> None:
    """Two rows of two of four tokens are four numbers, and five of a rank's times follow."""
    ranks = local_group(2)
    lockstep = Lockstep(ranks[0], 4, SimpleNamespace(statistics=dict))  # type: ignore[arg-type]
    ranks[1].gather(np.zeros(n_told, np.float32))
    with pytest.raises(LostPeerError, match="vocabulary"):
        lockstep.run([], lambda: np.zeros((2, 2), np.float32))
    ranks[1].gather(np.zeros(5 + 4, np.float32))
    logits = lockstep.run([], lambda: np.zeros((2, 2), np.float32))
    assert logits is not None and logits.shape == (2, 4)
