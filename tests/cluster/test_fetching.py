"""Pieces of a shard that a device has from another one, not from the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgerun.cluster.control import Fetch, Missing, Piece, Seat
from edgerun.cluster.fetching import Fetcher
from edgerun.cluster.head import Head, connect
from edgerun.cluster.holders import HEAD, Holders
from edgerun.cluster.home import Home
from edgerun.cluster.remote import Remote
from edgerun.cluster.server import Server
from edgerun.cluster.shards import ShardStore, make_offer
from edgerun.errors import EdgerunError
from tests.cluster.homes import Heard, acquainted, serving

PIECE = 1 << 16
N_PIECES = 12
DATA = np.random.default_rng(0).bytes(N_PIECES * PIECE - 1000)


def read(at: int, count: int) -> bytes:
    return DATA[at : at + count]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Head, list[Server], list[Home]]]:
    """A head, and two devices that can do nothing but keep shards."""
    for module in ("shards", "remote"):
        monkeypatch.setattr(f"edgerun.cluster.{module}.PIECE_BYTES", PIECE)
    homes = acquainted(tmp_path, "desk", "attic", "shed")
    with ExitStack() as stack:
        servers = [serving(home, lambda *_: None, Heard()) for home in homes[1:]]
        for server in servers:
            stack.callback(server.close)
        addresses = [(home.identity.name, server.address) for home, server in zip(homes[1:], servers, strict=True)]
        head = Head(homes[0], connect(homes[0], addresses, Heard()), Heard())
        stack.callback(head.close)
        yield head, servers, homes


def test_what_another_device_has_comes_from_there(three: tuple[Head, list[Server], list[Home]]) -> None:
    head, _, homes = three
    attic, shed = head.remotes
    offer = make_offer(len(DATA), read)
    assert attic.held([offer.shard]) == ()
    assert attic.give(offer, read, Heard(), head.holders) == len(DATA)
    assert attic.held([offer.shard]) == (offer.shard,)  # though no job needed it yet
    head.holders.note(HEAD, shed.member.fingerprint, 1, 1000.0)  # the head is slow to the shed
    assert shed.give(offer, read, Heard(), head.holders) == 0
    assert homes[2].shards.finish(offer.shard).read_bytes() == DATA
    asked_again = Holders()  # of a head that was just started
    asked_again.add(attic.held([offer.shard, "0" * 64]), attic.seat)
    assert asked_again.source_for(offer.shard, shed.member.fingerprint) == attic.seat
    assert asked_again.source_for("0" * 64, shed.member.fingerprint) is None


def lies(store: ShardStore, server: Server) -> Callable[[str, int], Piece]:
    return lambda shard, number: Piece(shard, number, bytes(PIECE))


def gives_another(store: ShardStore, server: Server) -> Callable[[str, int], Piece]:
    return lambda shard, number: ShardStore.piece(store, shard, 0)


def dies(store: ShardStore, server: Server) -> Callable[[str, int], Piece]:
    def piece(shard: str, number: int) -> Piece:
        server.close()
        return ShardStore.piece(store, shard, number)

    return piece


def has_no_such_file(store: ShardStore, server: Server) -> Callable[[str, int], Piece]:
    (path,) = store.folder.glob("*.part")
    path.unlink()
    return lambda shard, number: ShardStore.piece(store, shard, number)


@pytest.mark.parametrize("does", [lies, gives_another, dies, has_no_such_file])
def test_where_that_fails_a_piece_comes_from_the_head(
    does: Callable[[ShardStore, Server], Callable[[str, int], Piece]],
    three: tuple[Head, list[Server], list[Home]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, servers, homes = three
    attic, shed = head.remotes
    offer = make_offer(len(DATA), read)
    attic.give(offer, read, Heard(), head.holders)
    store, good, pieces = homes[1].shards, homes[1].shards.piece, []
    bad = does(store, servers[0])

    def piece(shard: str, number: int) -> Piece:
        pieces.append(number)
        return (good if number < 5 and does is not has_no_such_file else bad)(shard, number)

    monkeypatch.setattr(store, "piece", piece)
    head.holders.note(HEAD, shed.member.fingerprint, 1, 1000.0)
    sent = shed.give(offer, read, Heard(), head.holders)
    good_pieces = 0 if does is has_no_such_file else 5
    assert sent == len(DATA) - good_pieces * PIECE and pieces == list(range(good_pieces + 1))  # and is asked no more
    assert homes[2].shards.finish(offer.shard).read_bytes() == DATA


def test_only_what_was_offered_is_fetched_and_only_from_members(
    three: tuple[Head, list[Server], list[Home]], tmp_path: Path
) -> None:
    head, _, homes = three
    attic, _ = head.remotes
    offer = make_offer(len(DATA), read)
    attic.give(offer, read, Heard(), head.holders)
    heard = Heard()
    fetcher = Fetcher(homes[2], heard)
    assert fetcher.fetch(Fetch(offer.shard, 0, attic.seat)) == Missing((0,))  # it was not offered to the shed
    homes[2].shards.missing(offer)
    for number in (N_PIECES, (1 << 53) - 1):
        assert fetcher.fetch(Fetch(offer.shard, number, attic.seat)) == Missing((number,))
    assert fetcher.fetch(Fetch(offer.shard, 0, Seat("0" * 64, attic.address))) == Missing((0,))
    assert "not offered" in heard.text and "no such piece" in heard.text and "not known here" in heard.text
    homes[2].put_out("attic")
    assert fetcher.fetch(Fetch(offer.shard, 0, attic.seat)) == Missing((0,))
    with pytest.raises(EdgerunError):
        Remote(homes[2], attic.member, attic.address)
    own = homes[1].shards.folder / f"{'a' * 64}.part"  # begun by somebody else, and not whole
    own.write_bytes(bytes(8))
    assert attic.held(["a" * 64]) == ()


def test_the_faster_source_is_taken() -> None:
    holders, attic, shed = Holders(), Seat("a" * 64, ""), Seat("b" * 64, "")
    assert holders.source_for("shard", "c") is None
    holders.add(["shard"], attic)
    assert holders.source_for("shard", "c") == attic and holders.source_for("shard", attic.fingerprint) is None
    holders.note(attic.fingerprint, "c", 1000, 60.0)
    assert holders.source_for("shard", "c") == attic  # which had to be called first
    holders.note(attic.fingerprint, "c", 1000, 1.0)
    assert holders.source_for("shard", "c") is None  # which is measured next
    holders.note(HEAD, "c", 1000, 1.0)
    assert holders.source_for("shard", "c") == attic  # as fast, and the head has more to do
    holders.add(["shard"], shed)
    assert holders.source_for("shard", "c") == shed
    for _ in range(2):
        holders.note(shed.fingerprint, "c", 3000, 1.0)
    assert holders.source_for("shard", "c") == shed
    for _ in range(4):
        holders.note(HEAD, "c", 9000, 1.0)  # nobody else uses its cable any more
    assert holders.source_for("shard", "c") is None
    holders.remove("other", shed)
    assert holders.source_for("shard", "d") is not None
    holders.remove("shard", shed)
    holders.keep([shed.fingerprint, "d"])  # the attic is lost
    assert holders.source_for("shard", "d") is None
    assert holders.source_for("shard", "c") is None
