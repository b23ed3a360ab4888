"""A sequence that lives on between calls: its KV cache stays, a chat's messages too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from edgerun.engine.arguments import Messages, Prompt, checked_cancel, checked_messages
from edgerun.engine.cancel import CancelSignal
from edgerun.engine.context import common_prefix
from edgerun.engine.engine import Engine
from edgerun.engine.generate import generate
from edgerun.engine.params import SamplingOptions, SamplingParams
from edgerun.engine.parts import Message
from edgerun.engine.replies import Reply
from edgerun.engine.results import Chunk, Completion
from edgerun.engine.saved import SavedSession, read_session, write_session
from edgerun.engine.turns import PlainPrompt
from edgerun.errors import UsageError
from edgerun.options import Flag, Text, as_text, as_whole, refused, shown
from edgerun.paths import user_path

_FLAG = Flag()
_PATH = Text(4096)  # more than systems take


class Session:
    """One conversation with a model, as messages (`chat`) or as text that goes on (`complete`).

    What the KV cache already holds of a prompt is not computed again. For one thread at a time; `fork` gives
    another thread its own. `messages` is an ordinary list: change it as you like between calls.

    A chat that outgrows the context is a ContextLengthError, or with `context_shift` its oldest turns leave: the model
    sees them no more (`left`), though they stay in `messages`. See `Turns`.

    The cache grows with the conversation. All sessions of a model have so much memory together as its plan allows; a
    call for which none is left raises DoesNotFitError and leaves the session as it was. What a session holds is free
    again when it is closed, or nothing refers to it any more. is_transient: others may have it between calls.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        messages: Messages = (),
        context_shift: bool | None = None,
        is_transient: bool = False,
    ) -> None:
        shifts = engine.context_shift if context_shift is None else _FLAG.check("context_shift", context_shift)
        self._engine = engine
        self._turns = engine.new_turns() if shifts else None
        self._context = engine.new_context(is_transient=is_transient)
        self._ids: tuple[int, ...] | None = ()  # None: as many as the context has, while an answer grows
        self._answering: object | None = None  # the stream whose answer will stand here when it ends
        self.messages: list[Message] = _begun(messages)

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids so far, prompts and replies."""
        return tuple(self._context.tokens) if self._ids is None else self._ids

    @property
    def cached_tokens(self) -> int:
        """How many of `ids` have their keys and values in the cache."""
        return len(self._context)

    @property
    def left(self) -> int:
        """How many of `messages`, after the system's, the model does not see any more."""
        return 0 if self._turns is None else self._turns.left_of(_begun(self.messages))

    def chat(
        self,
        message: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Add a message (text: the user's) to the chat and answer it; both are kept in `messages`."""
        return last_completion(
            self.stream_chat(
                message,
                params,
                tools=tools,
                template_variables=template_variables,
                cancel=cancel,
                **options,
            )
        )

    def stream_chat(
        self,
        message: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `chat`, in chunks. A reply that is cancelled or whose iterator is closed is kept as far as it
        came; after an error or Ctrl-C `messages` are as before. One that a later call on the session (`rewind` and
        `clear` too) has overtaken ends with a UsageError, or when it is closed, and is not kept."""
        turn = [*_begun(self.messages), *checked_messages(message)]
        merged = merge(params, options)

        def encode(messages: Sequence[Message]) -> list[int]:
            return self._engine.encode_chat(messages, tools, template_variables, cancel)

        if self._turns is None:
            prompt = PlainPrompt(encode(turn))
        else:
            prompt = self._turns.prompt(turn, encode, merged.max_tokens)

        def keep(message: Message) -> None:
            self.messages = [*turn, message]

        return self._run(prompt, merged, cancel, keep, self._engine.new_reply(prompt.ids, tools))

    def complete(
        self,
        prompt: Prompt = "",
        params: SamplingParams | None = None,
        *,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Append text or ids to what the session holds, and continue that."""
        return last_completion(self.stream(prompt, params, cancel=cancel, **options))

    def stream(
        self,
        prompt: Prompt = "",
        params: SamplingParams | None = None,
        *,
        cancel: CancelSignal | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """As `complete`, in chunks."""
        before = self.ids
        nothing = as_text(prompt) == "" or (isinstance(prompt, list | tuple) and not prompt)
        added = [] if nothing and before else self._engine.encode(prompt, add_special=not before, cancel=cancel)
        return self._run(PlainPrompt([*before, *added]), merge(params, options), cancel)

    def answer(
        self,
        prompt: Sequence[int] | PlainPrompt,
        params: SamplingParams,
        cancel: CancelSignal | None = None,
        reply: Reply | None = None,
    ) -> Iterator[Chunk]:
        """Continue exactly these ids: what the session holds beyond their common prefix is forgotten. `reply`: takes
        the answer apart."""
        plain = prompt if isinstance(prompt, PlainPrompt) else PlainPrompt(prompt)
        return self._run(plain, params, cancel, None, reply)

    def save(self, path: str | Path) -> None:
        """Write messages, ids, and their keys and values to a file (`LLM.load_session` reads it): whole, or the old one
        stays. EdgerunError when it cannot be written, UsageError for messages that JSON cannot hold."""
        held = self._context.fork()
        try:
            ids = tuple(held.tokens) if self._ids is None else self._ids
            held.truncate(common_prefix(ids, held.tokens))
            session = SavedSession(_begun(self.messages), self.left, ids, len(held), held.stepped)
            write_session(_checked_path(path), self._engine, held, session)
        finally:
            held.close()

    @classmethod
    def load(cls, engine: Engine, path: str | Path, *, context_shift: bool | None = None) -> Session:
        """The session of a file that `save` wrote. Where its keys and values cannot be used here, they are computed
        again at the next call, and a notice says why.

        Raises NotFoundError; FormatError for what is damaged or no session; UnsupportedError for another version, or a
        session without messages of another model; ContextLengthError for one without messages that is longer than the
        context; DoesNotFitError."""
        session = cls(engine, context_shift=context_shift)
        try:
            saved = read_session(_checked_path(path), engine, session._context)
        except BaseException:
            session.close()
            raise
        session.messages = list(saved.messages)
        session._ids = tuple(saved.ids)
        if session._turns is not None:
            session._turns.resume(session.messages, saved.left)
        return session

    def rewind(self, n: int) -> None:
        """Forget the last `n` tokens of `ids`, but no `messages` (see `undo`). UsageError beyond that."""
        ids = self.ids
        count = as_whole(n)
        if count is None or not 0 <= count <= len(ids):
            raise UsageError(f"cannot rewind {shown(n)} tokens: the session holds {len(ids)}")
        self._answering, self._ids = None, ids[: len(ids) - count]
        self._context.truncate(len(self._ids))

    def undo(self) -> Message:
        """Take back the user's last message with what follows it, and return it. UsageError without one."""
        messages = _begun(self.messages)
        for i in range(len(messages) - 1, -1, -1):
            if messages[i]["role"] == "user":
                self.messages = messages[:i]
                return messages[i]
        raise UsageError("there is no user's message to take back")

    def fork(self) -> Session:
        """An independent copy: cache, tokens and messages."""
        twin = Session.__new__(Session)
        twin._engine = self._engine
        twin._turns = None if self._turns is None else self._turns.copy()
        twin._context = self._context.fork()
        twin._answering = None
        twin._ids = tuple(twin._context.tokens) if self._ids is None else self._ids
        twin.messages = list(self.messages)
        return twin

    def clear(self) -> None:
        """Forget everything, and free the cache's memory."""
        self.messages = []
        self._answering, self._ids = None, ()
        if self._turns is not None:
            self._turns.clear()
        self._context.release()

    def park(self) -> None:
        """Let others have the cache's memory if they need it, until the next call of `answer`."""
        self._context.park()

    def close(self) -> None:
        """Free the cache's memory. Every later call that needs it raises UsageError."""
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompt: PlainPrompt,
        params: SamplingParams,
        cancel: CancelSignal | None,
        keep: Callable[[Message], None] | None = None,
        reply: Reply | None = None,
    ) -> Iterator[Chunk]:
        self._engine.check_length(len(prompt.ids))
        return self._chunks(prompt, params, checked_cancel(cancel), keep, reply)

    def _chunks(
        self,
        prompt: PlainPrompt,
        params: SamplingParams,
        cancel: CancelSignal | None,
        keep: Callable[[Message], None] | None,
        reply: Reply | None,
    ) -> Iterator[Chunk]:
        said: list[str] = []
        produced: list[int] = []
        shown = frozenset() if reply is None else self._engine.reply_marks
        chunks = generate(self._engine, self._context, prompt.ids, params, cancel, prompt.make_room, shown)
        before, self._ids = self.ids, None
        mine = self._answering = object()

        def message() -> Message:
            return {"role": "assistant", "content": "".join(said)} if reply is None else reply.message()

        try:
            for chunk in chunks:
                said.append(chunk.text)
                produced.extend(chunk.token_ids)
                told = chunk if reply is None else reply.take(chunk)
                if chunk.finish_reason is not None and self._answering is mine:
                    self._end(prompt.ids, produced, message, keep)
                if told is not None:
                    yield told
        except GeneratorExit:
            chunks.close()
            if self._answering is mine:  # no later call has taken the session over
                self._end(prompt.ids, produced, message, keep)
            raise
        except BaseException:  # what was chosen last is remembered too, as far as its beginning still stands
            chunks.close()
            if self._answering is mine:
                held = tuple(self._context.leave())
                self._answering, self._ids = None, before if before[: len(held)] == held else held
            raise

    def _end(
        self,
        ids: list[int],
        produced: list[int],
        message: Callable[[], Message],
        keep: Callable[[Message], None] | None,
    ) -> None:
        whole = (*ids, *produced)
        held = tuple(self._context.leave())
        is_read = bool(produced) or len(held) >= len(ids)
        if len(held) > len(whole):  # it was computed ahead of what was read
            self._context.truncate(len(whole))
        # Tokens beyond the cache are remembered, unless a prompt was cut short by cancellation.
        self._ids = whole if is_read else held
        if keep is not None and is_read:
            keep(message())
        self._answering = None


def _checked_path(path: object) -> Path:
    """The path that a user means. UsageError for what is none."""
    if not isinstance(path, Path) and as_text(path) is None:
        raise refused("path", "a text or a pathlib.Path", path)
    return user_path(_PATH.check("path", str(path)))


def merge(params: SamplingParams | None, options: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a call: `params`, or the defaults, with `options` over them."""
    if params is not None and not isinstance(params, SamplingParams):
        raise refused("params", "SamplingParams or None", params)
    return (params or SamplingParams()).with_options(options)


def _begun(messages: Messages) -> list[Message]:
    """A chat so far: there need not be any message."""
    return [] if isinstance(messages, list | tuple) and not messages else checked_messages(messages)


def last_completion(chunks: Iterator[Chunk]) -> Completion:
    """Run a stream to its end."""
    completion: Completion | None = None
    for chunk in chunks:
        completion = chunk.completion
    assert completion is not None, "a stream ends with its completion"
    return completion
