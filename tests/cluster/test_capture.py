"""What somebody on the wire sees, and what they can do with it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import numpy as np

from edgerun.cluster.dial import dial_host, format_address, parse_address
from edgerun.cluster.head import Head, Shard, connect
from edgerun.cluster.pairing import join_host
from edgerun.cluster.shards import make_offer
from tests.cluster.homes import Heard, home_of, serving
from tests.cluster.process import add_up

SECRET = b"a weight that nobody else shall read " * 3
NUMBER = np.float32(1234.5678)


class Eavesdropper:
    """A relay to a device that writes down what passes: of each connection what the caller said, and what it heard."""

    def __init__(self, address: str) -> None:
        self._to = parse_address(address)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = format_address(*self._listener.getsockname())
        self.said: list[bytearray] = []
        self.heard: list[bytearray] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            device = socket.create_connection(self._to)
            for source, target, kept in ((caller, device, self.said), (device, caller, self.heard)):
                kept.append(bytearray())
                threading.Thread(target=self._relay, args=(source, target, kept[-1]), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(1 << 16):
                kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_a_capture_has_no_plaintext_and_opens_nothing(tmp_path: Path) -> None:
    events = Heard()
    attic, desk = home_of(tmp_path, "attic"), home_of(tmp_path, "desk")
    server = serving(attic, add_up, events)
    wire = Eavesdropper(server.address)
    code = server.code.open()
    desk.learn(join_host(dial_host(wire.address), code, desk.me())[0])
    head = Head(desk, connect(desk, [("attic", wire.address)], events), events)
    shard = Shard(make_offer(len(SECRET), lambda at, count: SECRET), lambda at, count: SECRET)
    group = head.begin([shard], "star", "f32")
    group.announce(b"2 4096")
    for _ in range(2):
        group.all_reduce(np.full(4096, NUMBER, np.float32))
    group.announce(b"")
    head.close()
    shards = {path.name for path in (attic.folder / "shards").iterdir()}
    said = [bytes(each) for each in wire.said]
    everything = b"".join(said) + b"".join(wire.heard)
    assert len(everything) > 3 * 4096 * 4  # it saw it all
    looked_for = [SECRET[:20], NUMBER.tobytes() * 2, code.encode(), b"attic", b"desk", b"Begin", b"2 4096"]
    assert [text for text in looked_for if text in everything] == []
    # what a caller said, said again: no pairing, no connection, nothing kept, and the device works on
    known, before = attic.roster, events.text.count("connection was refused")
    for each in said:
        thief = socket.create_connection(parse_address(server.address), timeout=10)
        with thief, contextlib.suppress(ConnectionError):  # it may be thrown out in the middle of a word
            thief.sendall(each)
            while thief.recv(1 << 16):
                pass
    end = time.monotonic() + 5
    while events.text.count("connection was refused") < before + 4 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(said) == 4 and events.text.count("connection was refused") == before + 4
    assert attic.roster == known
    assert {path.name for path in (attic.folder / "shards").iterdir()} == shards
    wire.close()
    server.close()
