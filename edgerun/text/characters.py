"""Characters as pre-tokenizers see them: only their kind matters.

llama.cpp splits text by regular expressions over "collapsed" text: each character beyond ASCII is replaced by
a stand-in for its Unicode category, and all whitespace by a vertical tab. Doing just the same, on Python's
`re`, is what makes ids agree with it on every code point; Unicode-aware engines differ in details.
"""

from __future__ import annotations

import re
import unicodedata

OTHER, NUMBER, LETTER, PUNCTUATION, MARK, SYMBOL = "\xd0", "\xd1", "\xd2", "\xd3", "\xd4", "\xd5"
SPACE = "\x0b"
HAN, UNASSIGNED_HAN = "\xd6", "\xd7"  # only where Han characters are told apart from other letters

# The insides of a character class over collapsed text, \p{L} and so on.
L = f"A-Za-z{LETTER}"
N = f"0-9{NUMBER}"
P = rf"!-#%-*,-/:;?@\[-\]_{{}}{PUNCTUATION}"
S = rf"$+<=>^`|~{SYMBOL}"
M = MARK

_STAND_INS = {"N": NUMBER, "L": LETTER, "P": PUNCTUATION, "M": MARK, "S": SYMBOL}
_SPACES = frozenset(
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

# What llama.cpp takes for Han: blocks, with the places in them that are still free.
_HAN_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2CEB0, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)

# Assigned in Unicode 15.0 and 15.1, which llama.cpp knows and Python 3.11 does not yet: first-last, by kind.
_SINCE_15 = {
    LETTER: "1123f-11240 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 1b132 1b155 1df25-1df2a 1e030-1e06d "
    "1e4d0-1e4eb 2b739 2ebf0-2ee5d 31350-323af",
    MARK: "cf3 ece 10efd-10eff 11241 11f00-11f01 11f03 11f34-11f3a 11f3e-11f42 13440 13447-13455 1e08f 1e4ec-1e4ef",
    NUMBER: "11f50-11f59 1d2c0-1d2d3 1e4f0-1e4f9",
    PUNCTUATION: "11b00-11b09 11f43-11f4f",
    SYMBOL: "2ffc-2fff 31ef 1f6dc 1f774-1f776 1f77b-1f77f 1f7d9 1fa75-1fa77 1fa87-1fa88 1faad-1faaf "
    "1fabb-1fabd 1fabf 1face-1facf 1fada-1fadb 1fae8 1faf7-1faf8",
}


class _Collapse(dict[int, str]):
    """A translation table that fills itself with the characters that occur."""

    def __init__(self) -> None:
        super().__init__()
        for stand_in, ranges in _SINCE_15.items():
            for first, _, last in (part.partition("-") for part in ranges.split()):
                for code in range(int(first, 16), int(last or first, 16) + 1):
                    self[code] = stand_in

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if code < 128:
            stand_in = char
        elif char in _SPACES:
            stand_in = SPACE
        else:
            stand_in = _STAND_INS.get(unicodedata.category(char)[0], OTHER)
        self[code] = stand_in
        return stand_in


class _CollapseHan(dict[int, str]):
    """As `_Collapse`, but Han characters have stand-ins of their own."""

    def __missing__(self, code: int) -> str:
        stand_in = _collapse[code]
        if any(first <= code <= last for first, last in _HAN_BLOCKS):
            stand_in = HAN if stand_in == LETTER else UNASSIGNED_HAN
        self[code] = stand_in
        return stand_in


_collapse = _Collapse()
_collapse_han = _CollapseHan()
_odd_spaces = {ord(char): SPACE for char in _SPACES}


def collapse(text: str) -> str:
    """`text` with stand-ins, character by character."""
    return text if text.isascii() else text.translate(_collapse)


def collapse_han(text: str) -> str:
    """As `collapse`, with Han characters apart from other letters."""
    return text if text.isascii() else text.translate(_collapse_han)


def plain_spaces(text: str) -> str:
    """`text` with a vertical tab for each whitespace beyond ASCII."""
    return text if text.isascii() else text.translate(_odd_spaces)


def compile_ascii(pattern: str) -> re.Pattern[str]:
    """A pattern in which \\s, \\d and \\b know ASCII only, as C++'s std::regex does."""
    return re.compile(pattern, re.ASCII)


def _byte_characters() -> list[str]:
    r"""GPT-2's 256 printable characters that stand for bytes: themselves, or from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = {byte: chr(byte) for byte in shown}
    for i, byte in enumerate(byte for byte in range(256) if byte not in chars):
        chars[byte] = chr(256 + i)
    return [chars[byte] for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
BYTE_OF_CHARACTER = {char: bytes([byte]) for byte, char in enumerate(BYTE_CHARACTERS)}
_to_byte_characters = dict(enumerate(BYTE_CHARACTERS))


def byte_encode(text: str) -> str:
    """The UTF-8 bytes of `text` as GPT-2's characters: "é" becomes "Ã©"."""
    return text.encode().decode("latin-1").translate(_to_byte_characters)
