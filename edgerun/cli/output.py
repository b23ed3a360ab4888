"""Writing results: JSON or lines of text on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import click

if TYPE_CHECKING:
    from edgerun.api import Chunk


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # what terminals obey, or show as something else


def printable(text: str) -> str:
    """A text from a file or a hub, for a terminal: control characters, escape sequences among them, as `\\x1b`."""
    return _with_escapes(text, lambda each: each.encode("unicode_escape").decode("ascii"))


def print_json(value: Any) -> None:
    """One JSON document on stdout; dataclasses become objects, paths texts."""
    text = json.dumps(value, default=_plain, ensure_ascii=False, indent=2)
    click.echo(_with_escapes(text, lambda each: json.dumps(each)[1:-1]))


def _with_escapes(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(each if each == "\n" or category(each) not in _UNSEEN else escape(each) for each in text)


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """`key   value` lines, without those whose value is None."""
    width = max((len(key) for key in pairs), default=0)
    for key, value in pairs.items():
        if value is not None:
            click.echo(f"{printable(key):<{width}}  {printable(str(value))}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Columns as wide as their longest cell; those named in `right` are aligned to the right."""
    table = [list(header), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = [
            f"{cell:>{width}}" if name in right else f"{cell:<{width}}"
            for cell, width, name in zip(row, widths, header, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


class ReplyPrinter:
    """Prints a reply on stdout as it comes. What the model thinks is for terminals alone: dimmed, an empty line after
    it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._thought = False  # last
        self._line = ""  # what stands last on stdout

    def print(self, chunk: Chunk) -> None:
        """A piece, at once."""
        if chunk.reasoning and self._is_terminal:
            self._write(click.style(chunk.reasoning, dim=True))
            self._thought = True
        if chunk.text:
            self._write("\n\n" + chunk.text if self._thought else chunk.text)
            self._thought = False
        sys.stdout.flush()

    def end(self) -> None:
        """The reply is over: its last line ends."""
        if not self._line.endswith("\n"):
            click.echo()

    def _write(self, text: str) -> None:
        click.echo(text, nl=False)
        self._line = text


def note(text: str) -> None:
    """A line on stderr."""
    click.echo(printable(text), err=True)


def check_target(path: Path, is_ours: Callable[[Path], bool], *, overwrite: bool) -> None:
    """UsageError unless `path` can be written: it is not there, empty, a device, something that edgerun wrote before
    (`is_ours`), or the user says so."""
    from edgerun.errors import UsageError

    if path.is_dir():
        raise UsageError(f"{path}: a directory; name a file to write")
    if path.is_file() and path.stat().st_size and not overwrite and not is_ours(path):
        raise UsageError(f"{path} is there and was not made by this option; name another file, or give --overwrite")


def write_result(path: Path, data: bytes | memoryview) -> None:
    """A file whole or not at all; to a device or pipe as it comes. OSError."""
    from edgerun.new_files import new_file

    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with new_file(path) as file:
        file.write(data)


def as_dict(value: Any) -> dict[str, Any]:
    """A dataclass's fields, not recursively."""
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return as_dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
