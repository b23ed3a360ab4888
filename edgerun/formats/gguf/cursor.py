"""A bounds-checked position in a file: no read goes past the end, every error says where."""

from __future__ import annotations

import struct
from typing import NoReturn

from edgerun.errors import FormatError
from edgerun.formats.file_bytes import FileBytes

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_WINDOW_BYTES = 1 << 18  # of the file that are held at a time


class Cursor:
    """Reads little-endian values forward from `position`; `name` (the file) begins every message."""

    def __init__(self, source: FileBytes, name: str) -> None:
        self.source = source
        self.name = name
        self.size = source.size
        self.position = 0
        self._window, self._begin = b"", 0  # bytes of the file, and where the first of them stands

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        """Raise FormatError at `position` (default: here)."""
        raise FormatError(f"{self.name}: byte {self.position if position is None else position}: {message}")

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes`; returns where they begin. FormatError when the file ends before them."""
        start = self.position
        if n_bytes > self.size - start:
            self.fail(f"{what} needs {n_bytes} bytes, the file has {self.size - start} left; it is truncated")
        self.position = start + n_bytes
        return start

    def at(self, start: int, n_bytes: int) -> bytes:
        """Bytes start .. start + n_bytes, which must be within the file."""
        self._reach(start, n_bytes)
        return self._window[start - self._begin : start - self._begin + n_bytes]

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return int(_U32.unpack(self.at(self.skip(4, what), 4))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack(self.at(self.skip(8, what), 8))[0])

    def text(self, what: str, max_bytes: int) -> str:
        """A length-prefixed UTF-8 string of at most `max_bytes`."""
        at = self.position
        n_bytes = self.u64(f"the length of {what}")
        if n_bytes > max_bytes:
            self.fail(f"{what} is {n_bytes} bytes long, the most is {max_bytes}", at)
        start = self.skip(n_bytes, what)
        try:
            return self.at(start, n_bytes).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", start)

    def skip_strings(self, count: int, what: str) -> int:
        """Step over `count` length-prefixed strings without decoding them (0.1 µs each); gives the start."""
        start = self.position
        if count > (self.size - start) // 8:
            self.fail(f"{what} claims {count} strings, the file has {self.size - start} bytes left")
        read, position, left, last = _U64.unpack_from, start, count, self.size - 8
        while left:
            if position > last:
                self.fail(f"{what}: a string runs past the end of the file", start)
            self._reach(position, 8)
            window, at = self._window, position - self._begin
            end, walked = len(window) - 8, 0
            while walked < left and at <= end:
                at += 8 + read(window, at)[0]
                walked += 1
            position, left = self._begin + at, left - walked
        if position > self.size:
            self.fail(f"{what}: a string runs past the end of the file", start)
        self.position = position
        return start

    def _reach(self, start: int, n_bytes: int) -> None:
        """Have so many bytes in the window."""
        if not self._begin <= start <= start + n_bytes <= self._begin + len(self._window):
            self._window = self.source.read(start, min(max(n_bytes, _WINDOW_BYTES), self.size - start))
            self._begin = start
