"""A head that ends at a bad moment: `python -m tests.cluster.dying_head FOLDER MODEL MOMENT SIGNAL`. It is the desk of
the homes in FOLDER, writes a text, and sends itself the signal at the MOMENT of its next group: after a loss."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgerun.cluster.head
import edgerun.cluster.links
import edgerun.cluster.remote
import edgerun.cluster.shards
from edgerun.cluster.control import Piece
from edgerun.cluster.household import Household
from edgerun.cluster.shard_file import ShardSource
from tests.cluster.homes import home_of
from tests.cluster.test_spares import OPTIONS, PROMPT, running

PIECE_BYTES = 1 << 14  # so that shards of a tiny model are many pieces
_SLOW_S = 0.5  # for each tensor that is cut after the signal: who waits for whole shards waits long


class _Fate:
    """Sends the signal once, at the first such moment of the second group."""

    def __init__(self, moment: str, sign: signal.Signals) -> None:
        self._moment = moment
        self._signal = sign
        self._groups = 0
        self.is_sent = False

    def begin(self) -> None:
        """A group begins."""
        self._groups += 1

    def at(self, moment: str) -> None:
        if moment == self._moment and self._groups == 2 and not self.is_sent:
            self.is_sent = True
            print("now", flush=True)
            os.kill(os.getpid(), self._signal)


def main() -> None:
    folder, model, moment, sign = sys.argv[1:]
    fate = _Fate(moment, signal.Signals[sign])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin, pieces, ask, ping = (
        Household.begin,
        ShardSource.pieces,
        edgerun.cluster.remote.ask,
        edgerun.cluster.links._ping_pong,
    )

    def begun(self: Household, *rest: Any) -> Any:
        fate.begin()
        return begin(self, *rest)

    def cut(self: ShardSource, *rest: Any) -> Iterator[Any]:
        for piece in pieces(self, *rest):
            fate.at("cut")
            time.sleep(_SLOW_S if fate.is_sent else 0)
            yield piece

    def asked(channel: Any, request: Any, *rest: Any) -> Any:
        if isinstance(request, Piece):
            fate.at("send")
        return ask(channel, request, *rest)

    def measured(*what: Any) -> float:
        fate.at("measure")
        return ping(*what)

    Household.begin = begun  # type: ignore[method-assign]
    Household.prepare = lambda *_: None  # type: ignore[method-assign]  # so that a loss costs a cut
    ShardSource.pieces = cut  # type: ignore[method-assign]
    edgerun.cluster.remote.ask = asked
    edgerun.cluster.links._ping_pong = measured
    edgerun.cluster.shards.PIECE_BYTES = edgerun.cluster.remote.PIECE_BYTES = PIECE_BYTES
    with running(Path(model), home_of(Path(folder), "desk")) as llm:
        for chunk in llm.stream(PROMPT, **{**OPTIONS, "max_tokens": 400}):
            print(chunk.text, flush=True)


if __name__ == "__main__":
    main()
