"""A connection for messages of at most some bytes: a length, then so many bytes. What they mean is `control.py`'s."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import sys
import time

from edgerun.errors import FormatError, LostPeerError, PutOutError

_LENGTH = struct.Struct("<I")
MOST_BYTES = 8 << 20  # of one message


class Channel:
    """A blocking connection; it takes the socket over. For one thread at a time; any may close it."""

    def __init__(self, connection: socket.socket, most_bytes: int = MOST_BYTES) -> None:
        self._socket = connection
        self._most_bytes = most_bytes
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes, wait_s: float = 30.0) -> None:
        """A message, whole. LostPeerError when the other side is gone or takes nothing for so long."""
        try:
            self._socket.settimeout(wait_s)
            self._socket.sendall(_LENGTH.pack(len(message)) + message)
        except (OSError, ValueError) as error:
            raise LostPeerError(f"the other device went away: {error}") from error

    def receive(self, wait_s: float) -> bytes:
        """The next message. LostPeerError when the connection ends or the message is not whole after so long;
        FormatError when it is longer than a message may be."""
        end = time.monotonic() + wait_s
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, end))
        if length > self._most_bytes:
            raise FormatError(f"a message of {length} bytes; at most {self._most_bytes} are read")
        return bytes(self._exactly(length, end))

    def is_readable(self, wait_s: float) -> bool:
        """Whether something has come, at the latest after so long. LostPeerError when it was closed here."""
        try:
            pending = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
            return pending or bool(select.select([self._socket], [], [], wait_s)[0])
        except (OSError, ValueError) as error:
            raise LostPeerError(f"the connection was closed: {error}") from error

    def is_acknowledged(self) -> bool:
        """Whether the other device's system has said that it got all that was sent; False where that is not told."""
        if sys.platform != "linux":
            return False
        import fcntl
        import termios

        try:
            left = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return False
        return int.from_bytes(left, sys.byteorder) == 0

    def close(self) -> None:
        """Harmless when repeated, and while another thread waits: its wait ends."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def detach(self) -> socket.socket:
        """The socket, which is the caller's from now on."""
        return self._socket

    def _exactly(self, count: int, end: float) -> bytearray:
        data = bytearray(count)
        view, filled = memoryview(data), 0
        while filled < count:
            left = end - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError("nothing came in time")
                self._socket.settimeout(left)
                got = self._socket.recv_into(view[filled:])
            except (OSError, ValueError) as error:
                # What a side of TLS 1.3 says to a certificate that it has not pinned, once the other's hands are shaken
                if isinstance(error, ssl.SSLError) and error.reason == "TLSV1_ALERT_UNKNOWN_CA":
                    raise PutOutError("the other device does not know this one any more: it was put out") from error
                raise LostPeerError(f"the other device went away: {error}") from error
            if got == 0:
                raise LostPeerError("the other device closed the connection")
            filled += got
        return data
