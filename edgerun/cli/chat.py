"""A chat besides its terminal: what was said, how to reply, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.cli.output import note
from edgerun.cli.saved_chat import SavedChat, read_chat, session_path, write_chat
from edgerun.cli.stats import ReplyMeter, measures_line, stats_line
from edgerun.errors import EdgerunError, UsageError
from edgerun.paths import kind_of

if TYPE_CHECKING:
    from edgerun.api import LLM, CancelToken, Chunk, Completion


class Chat:
    """What a chat is made of besides the terminal: the model, its session, and how it shall reply."""

    def __init__(
        self,
        llm: LLM,
        *,
        name: str,
        chats: bool,
        options: dict[str, Any],
        system: str | None = None,
        stats: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.chats = chats  # with a chat template; else each message is a text to continue
        self.options = options
        self.stats = stats
        self.variables = dict(variables or {})  # of the chat template
        self.last: Completion | None = None
        self.measures: dict[str, float] = {}  # of the last reply
        self.leaving = False
        self.told = False  # that turns have left
        self.confirms: Callable[[str], bool] = lambda question: False  # nobody to ask
        self._llm = llm
        self._session = llm.session()
        self._last_text: str | None = None
        if system is not None:
            self.system = system

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat so far, the system's message first where there is one."""
        return [dict(message) for message in self._session.messages]

    @messages.setter
    def messages(self, messages: list[dict[str, str]]) -> None:
        self._session.messages = list(messages)

    @property
    def system(self) -> str | None:
        """The system's message; None: none."""
        first = self._session.messages[:1]
        return str(first[0]["content"]) if first and first[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if not self.chats:
            raise UsageError("this model has no chat template: it cannot be told how to behave")
        rest = self._session.messages[0 if self.system is None else 1 :]
        self._session.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]

    @property
    def left(self) -> int:
        """How many messages of the chat the model sees no more, since it outgrew the context."""
        return self._session.left

    def clear(self) -> None:
        """Forget the chat; the system's message stays."""
        system = self.system
        self.told = False
        self._session.clear()
        self._last_text = self.last = None
        self.measures = {}
        if system is not None:
            self.system = system

    def save(self, path: Path) -> None:
        """Write the chat, and beside it what its session holds. EdgerunError when one of them cannot be written."""
        self.save_text(path)
        self._session.save(session_path(path))

    def save_text(self, path: Path) -> None:
        """The chat alone, which is written in no time."""
        write_chat(path, SavedChat(self.name, self.options, self.messages))

    def load(self, path: Path) -> None:
        """Go on with a saved chat; what of its session cannot be used is computed again, and a note says so. Raises as
        `read_chat`, and the chat is as before."""
        saved, beside = read_chat(path), session_path(path)
        self.clear()
        if kind_of(beside):
            try:
                session = self._llm.load_session(beside)
            except (EdgerunError, OSError) as error:
                note(f"the chat is computed again: {error}")
            else:
                self._session.close()
                self._session = session
        self.messages, self.options = list(map(dict, saved.messages)), dict(saved.options)

    def meter(self) -> ReplyMeter:
        """For the next reply."""
        return ReplyMeter(self._llm)

    def last_stats(self) -> str:
        """Of the last reply, for people. UsageError before the first."""
        if self.last is None:
            raise UsageError("no reply yet")
        return f"{stats_line(self.last)}\n{measures_line(self.measures)}"

    def reply(self, text: str, cancel: CancelToken) -> Iterator[Chunk]:
        """Answer a message, or continue a text."""
        self._last_text = text
        if self.chats:
            return self._session.stream_chat(text, template_variables=self.variables, cancel=cancel, **self.options)
        return self._llm.stream(text, cancel=cancel, **self.options)

    def take_back(self) -> str:
        """Remove the user's last message with its reply, and return it. UsageError when there is none."""
        if self.chats:
            return str(self._session.undo()["content"])
        if self._last_text is None:
            raise UsageError("there is nothing to retry yet")
        return self._last_text
