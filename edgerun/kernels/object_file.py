"""Which names an object file shows to others, read from its symbol table: ELF, Mach-O and COFF, 64 bits, little-endian.

Private functions and data have no names here, and sections' own symbols do not count: nobody links by them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgerun.errors import FormatError

_ELF, _MACH_O, _COFF = b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe", (b"\x64\x86", b"\x64\xaa")  # COFF: x86-64, aarch64
_ELF_SYMBOLS, _ELF_LOCAL, _ELF_SECTION, _ELF_FILE = 2, 0, 3, 4
_MACH_O_SYMBOLS, _MACH_O_DEBUG, _MACH_O_TYPE = 2, 0xE0, 0x0E
_COFF_EXTERNAL, _COFF_WEAK = 2, 105


@dataclass(frozen=True)
class Symbols:
    """Names as C has them. `local`: named, though nobody but the object itself should find them."""

    defined: frozenset[str]
    undefined: frozenset[str]
    local: frozenset[str]


def read_symbols(code: bytes) -> Symbols:
    """FormatError for anything but a whole object file of a known kind."""
    try:
        if code.startswith(_ELF):
            found = list(_elf(code))
        elif code.startswith(_MACH_O):
            found = list(_mach_o(code))
        elif code.startswith(_COFF):
            found = list(_coff(code))
        else:
            raise FormatError(f"an object file of an unknown kind: it begins with {code[:8].hex()}")
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise FormatError(f"a malformed object file: {error}") from error
    defined, undefined, local = (
        frozenset(name for kind, name in found if kind == each) for each in ("defined", "undefined", "local")
    )
    return Symbols(defined, undefined, local)


def _elf(code: bytes) -> Iterator[tuple[str, str]]:
    sections_at = struct.unpack_from("<Q", code, 40)[0]
    entry, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, sections_at + i * entry) for i in range(count)]
    for _, kind, _, _, offset, size, link, _, _, each in sections:
        if kind != _ELF_SYMBOLS:
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, each or 24):
            name, info, _, section = struct.unpack_from("<IBBH", code, at)
            if name and info & 15 not in (_ELF_SECTION, _ELF_FILE):
                local = info >> 4 == _ELF_LOCAL
                yield "undefined" if not section else "local" if local else "defined", _text(code, names + name)


def _mach_o(code: bytes) -> Iterator[tuple[str, str]]:
    commands = struct.unpack_from("<I", code, 16)[0]
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", code, at)
        if command == _MACH_O_SYMBOLS:
            symbols, count, names = struct.unpack_from("<III", code, at + 8)
            for i in range(count):
                name, kind = struct.unpack_from("<IB", code, symbols + 16 * i)
                if not kind & _MACH_O_DEBUG:
                    where = "local" if not kind & 1 else "defined" if kind & _MACH_O_TYPE else "undefined"
                    yield where, _text(code, names + name).removeprefix("_")
        at += max(8, size)


def _coff(code: bytes) -> Iterator[tuple[str, str]]:
    symbols, count = struct.unpack_from("<II", code, 8)
    names, i = symbols + 18 * count, 0
    while i < count:
        at = symbols + 18 * i
        zero, offset, _, section, _, storage, more = struct.unpack_from("<IIIhHBB", code, at)
        name = code[at : at + 8].rstrip(b"\0").decode() if zero else _text(code, names + offset)
        if storage in (_COFF_EXTERNAL, _COFF_WEAK):
            yield "defined" if section else "undefined", name
        elif section > 0 and not more:  # sections' own symbols have a second record
            yield "local", name
        i += 1 + more


def _text(code: bytes, at: int) -> str:
    return code[at : code.index(b"\0", at)].decode()
