'''Messages line by line: from the terminal, with editing and history, or from a pipe. One of several lines is put
between """ marks.'''

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from edgerun.cli.output import note
from edgerun.cli.stdin import MOST_BYTES, decoded_stdin
from edgerun.errors import Cancelled
from edgerun.paths import data_dir

FENCE = '"""'


class Messages(Protocol):
    """Where a chat's messages come from."""

    def read(self) -> str: ...

    def confirm(self, question: str) -> bool: ...


class Reader:
    """Reads messages. Enter sends, Alt-Enter begins a new line, as Enter does within a fenced block."""

    def __init__(self, history: Path | None = None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def new_line(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: Any = PromptSession(
            ">>> ",
            history=_kept_history(history or data_dir() / "history"),
            key_bindings=keys,
            multiline=Condition(lambda: in_block(self._session.default_buffer.text)),
            prompt_continuation="... ",
        )

    def read(self) -> str:
        """The next message. EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        return unfenced(whole_letters(str(self._session.prompt())))

    def confirm(self, question: str) -> bool:
        """Whether the user says yes. Anything else is no."""
        from prompt_toolkit import prompt

        try:
            return prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


class PipedReader:
    """The same from stdin, where that is no terminal: a line is a message, of 32 MiB at most."""

    def read(self) -> str:
        """The next message. EOFError at the end, UsageError for what is not UTF-8 or too long, Cancelled on Ctrl-C."""
        try:
            text = line = self._line()
            while line and in_block(text):
                line = self._line()
                text += line
        except KeyboardInterrupt:
            raise Cancelled("interrupted") from None
        if not text:
            raise EOFError
        return unfenced(text.removesuffix("\n"))

    def confirm(self, question: str) -> bool:
        """There is nobody to ask."""
        return False

    def _line(self) -> str:
        """With its end; "" after the last."""
        return decoded_stdin(sys.stdin.buffer.readline(MOST_BYTES + 1))


def _kept_history(path: Path) -> Any:
    """What was written before, from a file where that can be had; where it cannot, or not any more, a note says so once
    and the history lasts as long as the chat."""
    from prompt_toolkit.history import FileHistory

    class KeptHistory(FileHistory):
        told = False

        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError as error:
                return self._without(error)

        def store_string(self, string: str) -> None:
            try:
                super().store_string(whole_letters(string))
            except OSError as error:
                self._without(error)

        def _without(self, error: OSError) -> list[str]:
            if not self.told:
                self.told = True
                note(f"what you write is not kept for the next chat: {error}")
            return []

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        from prompt_toolkit.history import InMemoryHistory

        note(f"what you write is not kept for the next chat: {error}")
        return InMemoryHistory()
    return KeptHistory(str(path))


def whole_letters(text: str) -> str:
    """Text as UTF-8 can have it: bytes that the terminal sent and that are none (lone surrogates) become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def in_block(text: str) -> bool:
    """Whether a fenced block was begun and not yet ended."""
    return text.lstrip().startswith(FENCE) and text.count(FENCE) < 2


def unfenced(text: str) -> str:
    """The message without its fence."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and stripped.endswith(FENCE) and len(stripped) >= 2 * len(FENCE):
        return stripped[len(FENCE) : -len(FENCE)].strip("\n")
    return text
