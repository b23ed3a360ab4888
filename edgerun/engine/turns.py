"""Which of a chat's turns the model still sees: where a chat outgrows its context, the oldest leave.

A turn is a user's message with all that follows it (the answer, calls of tools and their results), up to the next
user's. What leaves, leaves whole. The system's messages at the beginning, and the turn that is to be answered, never
leave.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from edgerun.engine.parts import Message
from edgerun.errors import ContextLengthError
from edgerun.events import EventSink, TurnsLeft

Encode = Callable[[Sequence[Message]], list[int]]
"""Messages -> the ids of a prompt that asks for the answer to them. Raises ContextLengthError."""

_SYSTEM = ("system", "developer")


class Turns:
    """A chat's memory of what has left it, from one answer to the next: what has left does not come back, so that the
    prompt begins as the one before did, and its keys and values can be used again.

    limit: tokens that prompt and answer may have together.
    """

    def __init__(self, limit: int, events: EventSink) -> None:
        self.limit = limit
        self._events = events
        self._left: tuple[Message, ...] = ()

    def left_of(self, messages: Sequence[Message]) -> int:
        """How many of a chat's messages, after the system's, have left: none of another chat, or an edited one."""
        head = _n_system(messages)
        return len(self._left) if tuple(messages[head : head + len(self._left)]) == self._left else 0

    def copy(self) -> Turns:
        """For a copy of the chat."""
        twin = Turns(self.limit, self._events)
        twin._left = self._left
        return twin

    def clear(self) -> None:
        """The chat begins anew."""
        self._left = ()

    def resume(self, messages: Sequence[Message], left: int) -> None:
        """The chat goes on, of which the first `left` messages after the system's had left."""
        head = _n_system(messages)
        self._left = tuple(messages[head : head + left])

    def prompt(self, messages: Sequence[Message], encode: Encode, max_tokens: int | None) -> ChatPrompt:
        """The prompt for the answer to `messages` (all of the chat), without the turns that have to leave for an answer
        of at most `max_tokens`. ContextLengthError when the messages that never leave are too many tokens."""
        head = _n_system(messages)
        starts = _turn_starts(messages, head)
        left = head + self.left_of(messages)
        first = starts.index(left) if left in starts else 0
        prompt = ChatPrompt(self, messages, head, starts, first, encode)
        prompt.begin(max_tokens)
        return prompt

    def leave(self, messages: Sequence[Message], turns: int) -> None:
        """From now on `messages` are not seen any more; `turns` of them left just now."""
        self._left = tuple(messages)
        self._events(TurnsLeft(turns, len(messages)))


class PlainPrompt:
    """`ids` that an answer continues. They stay as they are."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    def make_room(self, n_answered: int) -> list[int] | None:
        """Shorter `ids`, with which an answer of which there are `n_answered` tokens can go on; None: there are none,
        and it ends."""
        return None


class ChatPrompt(PlainPrompt):
    """The prompt of a chat's next answer. While that is generated, more turns may leave."""

    def __init__(
        self,
        turns: Turns,
        messages: Sequence[Message],
        head: int,
        starts: Sequence[int],
        first: int,
        encode: Encode,
    ) -> None:
        super().__init__()
        self._turns = turns
        self._messages = messages
        self._head = head  # messages before the first turn
        self._starts = starts  # each turn's first message
        self._first = first  # turn that is seen
        self._encode = encode

    def begin(self, max_tokens: int | None) -> None:
        """Make `ids`, if need be without some turns."""
        limit = self._turns.limit
        most = limit if max_tokens is None else max_tokens
        ids = self._encoded(self._first)
        if ids is not None and len(ids) + min(most, limit // 4) <= limit:
            self.ids = ids
            return
        least = self._encode(self._without(len(self._starts) - 1))
        free = limit - len(least)
        if ids is not None and len(ids) + min(most, max(1, free // 4)) <= limit:
            self.ids = ids
        elif free < 0 or not self._shorten(len(least) + free // 2):
            self.ids = least  # nothing can leave, or nothing would help

    def make_room(self, n_answered: int) -> list[int] | None:
        """Let turns leave. None where none is left that could."""
        if self._first == len(self._starts) - 1:
            return None
        least = self._encode(self._without(len(self._starts) - 1))
        free = self._turns.limit - len(least) - n_answered
        return self.ids if free > 0 and self._shorten(len(least) + free // 2) else None

    def _shorten(self, most: int) -> bool:
        """Let the fewest turns leave, but one, with which the prompt has at most `most` tokens: half of what is free
        then is, so that many an answer passes before the next turn has to leave. False where there is none to leave."""
        first, last = self._first, len(self._starts) - 1
        if first == last:
            return False
        turn = bisect_left(range(last), True, lo=first + 1, key=lambda i: self._is_within(i, most))
        ids = self._encode(self._without(turn))
        self.ids, self._first = ids, turn
        self._turns.leave(self._messages[self._head : self._starts[turn]], turn - first)
        return True

    def _is_within(self, turn: int, most: int) -> bool:
        ids = self._encoded(turn)
        return ids is not None and len(ids) <= most

    def _encoded(self, turn: int) -> list[int] | None:
        """The prompt with the turns from this one on; None: it is longer than the context."""
        try:
            return self._encode(self._without(turn))
        except ContextLengthError:
            return None

    def _without(self, turn: int) -> list[Message]:
        """The chat without the turns before this one."""
        return [*self._messages[: self._head], *self._messages[self._starts[turn] :]]


def _n_system(messages: Sequence[Message]) -> int:
    """How many messages of the system a chat begins with."""
    return next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM), len(messages))


def _turn_starts(messages: Sequence[Message], head: int) -> list[int]:
    """Where turns begin: at each user's message, and at whatever the chat begins with after the system's."""
    return [i for i in range(head, len(messages)) if i == head or messages[i]["role"] == "user"] or [head]
