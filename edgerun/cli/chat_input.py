'''Lines from the terminal, with editing and history; a message of several lines is put between """ marks.'''

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError

FENCE = '"""'


class Reader:
    """Reads messages. Enter sends, Alt-Enter begins a new line, as Enter does within a fenced block."""

    def __init__(self, history: Path | None = None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings

        from edgerun import paths

        history = history or paths.data_dir() / "history"
        try:
            history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EdgerunError(f"{history.parent}: cannot be made for the history: {error.strerror}") from error
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def new_line(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: Any = PromptSession(
            ">>> ",
            history=FileHistory(str(history)),
            key_bindings=keys,
            multiline=Condition(lambda: in_block(self._session.default_buffer.text)),
            prompt_continuation="... ",
        )

    def read(self) -> str:
        """The next message. EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        return unfenced(str(self._session.prompt()))


def in_block(text: str) -> bool:
    """Whether a fenced block was begun and not yet ended."""
    return text.lstrip().startswith(FENCE) and text.count(FENCE) < 2


def unfenced(text: str) -> str:
    """The message without its fence."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and stripped.endswith(FENCE) and len(stripped) >= 2 * len(FENCE):
        return stripped[len(FENCE) : -len(FENCE)].strip("\n")
    return text
