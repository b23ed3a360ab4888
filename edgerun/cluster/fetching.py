"""Pieces of shards that a device has from another one, because the head says that it may."""

from __future__ import annotations

from edgerun.cluster.control import Fetch, Missing
from edgerun.cluster.home import Home
from edgerun.cluster.remote import Remote
from edgerun.errors import EdgerunError, NotFoundError
from edgerun.events import EventSink, Notice

_CONNECT_S = 1.0


class Fetcher:
    """For one head, with a connection to the device that it named last. For one thread; `close` it."""

    def __init__(self, home: Home, events: EventSink) -> None:
        self._home = home
        self._events = events
        self._source: Remote | None = None

    def fetch(self, request: Fetch) -> Missing:
        """Keep a piece that another member of the household has. What is not what was offered is not kept: then, and
        where that device is gone, the piece is missing still, and the head may give it."""
        try:
            piece = self._to(request).want(request.shard, request.number)
            if (piece.shard, piece.number) != (request.shard, request.number):
                raise NotFoundError("it gave another piece")
            self._home.shards.keep(piece)
        except EdgerunError as error:
            self._events(Notice(f"a piece of a shard comes from the head, not from another device: {error}"))
            self.close()
            return Missing((request.number,))
        return Missing(())

    def close(self) -> None:
        """Harmless when repeated."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _to(self, request: Fetch) -> Remote:
        source = self._source
        if source is None or source.seat != request.source:
            self.close()
            member = self._home.roster.find(request.source.fingerprint)
            if member is None:
                raise NotFoundError("the device that has it is not known here")
            source = self._source = Remote(self._home, member, request.source.address, connect_s=_CONNECT_S)
        return source
