"""Text that is piped in."""

from __future__ import annotations

import sys
import time

from edgerun.cli.output import note
from edgerun.errors import UsageError
from edgerun.units import format_size

_PATIENCE_S = 2.0
_PIECE_BYTES = 1 << 20
MOST_BYTES = 32 << 20  # more text than the longest contexts hold


class Stdin:
    """What is piped in. `needed`: wait for its end; else it is only waited for while the model loads, since
    whoever started the program may have left it open for ever."""

    def __init__(self, *, needed: bool) -> None:
        closed = sys.stdin is None or sys.stdin.closed
        self.is_terminal = not closed and sys.stdin.isatty()
        self._needed = needed
        self._deadline = time.monotonic() + _PATIENCE_S
        self.is_pending = not closed and not self.is_terminal

    def read_now(self) -> str:
        """All of it when it is needed or there is something, else ""."""
        return self._read() if self.is_pending and (self._needed or self._ready(0)) else ""

    def read_late(self) -> str:
        """All of it, unless it was read before or nothing came in time; then a note says so."""
        if not self.is_pending:
            return ""
        if not self._ready(self._deadline - time.monotonic()):
            self.is_pending = False
            note("nothing came on stdin, going on without it (give - as PROMPT to wait, or </dev/null)")
            return ""
        return self._read()

    def _read(self) -> str:
        self.is_pending = False
        return read_stdin().strip("\n")

    def _ready(self, timeout_s: float) -> bool:
        import select

        try:
            return bool(select.select([sys.stdin], [], [], max(0.0, timeout_s))[0])
        except (OSError, ValueError):  # nothing that can be waited for: reading it will not block either
            return True


def read_stdin() -> str:
    """All of stdin. UsageError when it is not UTF-8, or more than `MOST_BYTES`: then no more than that is read."""
    data = bytearray()
    while piece := sys.stdin.buffer.read(_PIECE_BYTES):
        data += piece
        if len(data) > MOST_BYTES:
            break
    return decoded_stdin(data)


def decoded_stdin(data: bytes | bytearray) -> str:
    """Text that came on stdin. UsageError when it is not UTF-8, or more than `MOST_BYTES`."""
    if len(data) > MOST_BYTES:
        raise UsageError(f"stdin holds more than {format_size(MOST_BYTES)} of text, more than any context")
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text: {error}") from error


def checked_text(text: str) -> str:
    """An argument as it is. UsageError when its bytes were not UTF-8 (they come as lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8 text: {error}") from error
    return text
