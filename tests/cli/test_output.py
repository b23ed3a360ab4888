"""What comes from files and hubs cannot speak to the terminal."""

from __future__ import annotations

import json

import pytest

from edgerun.api import Chunk
from edgerun.cli import output
from edgerun.cli.progress import ProgressBars
from edgerun.events import Notice, Progress

EVIL = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\r\x00 é 漢字 🦊"
SEEN = "é 漢字 🦊"


def test_every_way_of_printing(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_pairs({"name": EVIL, EVIL: "x"})
    output.print_table(["NAME"], [[EVIL]])
    output.note(EVIL)
    output.print_json({"name": EVIL, EVIL: [EVIL]})
    with ProgressBars() as bars:
        bars(Notice(EVIL))
        bars(Progress(EVIL, 0, 5, "kernels"))
        bars(Progress(EVIL, 5, 5, "kernels"))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert all(line.isprintable() for line in text.split("\n"))
        assert SEEN in text
    begin = said.out.index("{")
    assert json.loads(said.out[begin:]) == {"name": EVIL, EVIL: [EVIL]}, "nothing is lost"
    assert output.printable("a\nb c") == "a\nb c"


def test_what_a_model_thinks_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [Chunk("", (1,), reasoning="hm"), Chunk("", (2,), reasoning="..."), Chunk("a", (3,)), Chunk("b", (4,))]
    printed = {}
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        printer = output.ReplyPrinter()
        for chunk in chunks:
            printer.print(chunk)
        printer.end()
        printed[is_terminal] = capsys.readouterr().out
    assert printed[False] == "ab\n"
    assert printed[True] in ("\x1b[2mhm\x1b[0m\x1b[2m...\x1b[0m\n\nab\n", "hm...\n\nab\n")  # as click finds stdout
