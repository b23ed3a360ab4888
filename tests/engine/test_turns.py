"""A chat that outgrows its context goes on: what leaves, what stays, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.engine import Engine, Message, SamplingParams, Session
from edgerun.errors import Cancelled, ContextLengthError, UsageError
from edgerun.events import Event, TurnsLeft
from engine.fakes import VOCAB, FakeDecoder, FakeTemplate, fake_engine

GREEDY = SamplingParams(temperature=0, max_tokens=8)
ASCII_ONLY = [*range(32), *range(127, VOCAB)]
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


class SeenTemplate(FakeTemplate):
    """Remembers what it was given last."""

    seen: Sequence[Message] = ()

    def render(self, messages: Sequence[Message], **more: object) -> str:  # type: ignore[override]
        self.seen = list(messages)
        return super().render(messages)


class Chat:
    """An engine with a session whose turns may leave, and what both say."""

    def __init__(self, context: int, *messages: Message) -> None:
        self.template = SeenTemplate()
        self.events: list[Event] = []
        self.decoder = FakeDecoder(forbid=ASCII_ONLY)
        self.engine = fake_engine(
            self.decoder, context=context, template=self.template, events=self.events.append, context_shift=True
        )
        self.session = Session(self.engine, messages=list(messages))

    @property
    def shifts(self) -> list[TurnsLeft]:
        return [event for event in self.events if isinstance(event, TurnsLeft)]


def fresh(context: int, messages: Sequence[Message], params: SamplingParams) -> str:
    """The answer of a session that knows nothing else."""
    session = Session(fake_engine(context=context), messages=list(messages[:-1]))
    return session.chat(messages[-1], params).text


def test_the_oldest_turns_leave_and_the_others_are_answered_as_if_they_were_all() -> None:
    chat = Chat(200, SYSTEM)
    for i in range(12):
        turn = [*chat.session.messages, user(f"message {i}")]
        text = chat.session.chat(f"message {i}", GREEDY).text
        seen = chat.template.seen
        assert seen[0] == SYSTEM and seen[-1] == turn[-1]
        assert list(seen[1:]) == turn[1 + chat.session.left :]
        assert text == fresh(200, seen, GREEDY)
    assert len(chat.session.messages) == 25  # the chat itself is whole
    assert chat.session.left == chat.shifts[-1].messages > 0
    assert sum(2 * shift.turns for shift in chat.shifts) == chat.session.left


def test_many_answers_pass_between_two_departures_and_reuse_what_is_there() -> None:
    chat = Chat(1000, SYSTEM)
    at, reused = [], []
    for i in range(60):
        before = len(chat.shifts)
        usage = chat.session.chat(f"message {i}", GREEDY).usage
        if len(chat.shifts) > before:
            at.append(i)
            reused.append(usage.reused_tokens)
        else:
            assert usage.prompt_tokens - usage.reused_tokens < 60
    assert len(at) >= 3
    assert min(b - a for a, b in pairwise(at)) >= 5
    assert min(reused) >= len("<s>system Be brief.")  # what stands before the turns is kept


def test_without_the_option_it_is_refused_as_ever() -> None:
    session = Session(fake_engine(context=200), messages=[SYSTEM])
    with pytest.raises(ContextLengthError):
        for i in range(12):
            session.chat(f"message {i}", GREEDY)
    assert len(session.messages) < 25 and session.left == 0
    with pytest.raises(ContextLengthError):
        Session(fake_engine(context=50), messages=[user("a" * 30), said("b")], context_shift=False).chat("c")
    with pytest.raises(UsageError, match="context_shift"):
        Session(fake_engine(), context_shift="on")  # type: ignore[arg-type]


def test_a_message_that_is_too_long_by_itself_is_refused_and_nothing_leaves() -> None:
    chat = Chat(200, SYSTEM, user("hello"), said("hi"))
    before = chat.session.messages
    with pytest.raises(ContextLengthError):
        chat.session.chat("long " * 50, GREEDY)
    assert chat.session.messages == before and chat.session.left == 0 and chat.shifts == []
    assert chat.session.chat("short", GREEDY).text == fresh(200, [*before, user("short")], GREEDY)


def test_what_a_tool_said_leaves_with_its_turn() -> None:
    call: list[Message] = [
        user("what time is it? " * 5),
        {"role": "assistant", "content": "clock()"},
        {"role": "tool", "content": "noon"},
        said("It is noon."),
    ]
    chat = Chat(280, SYSTEM, *call, user("thanks"), said("welcome"))
    chat.session.chat("and now? " * 8, GREEDY)
    assert [message["role"] for message in chat.template.seen] == ["system", "user", "assistant", "user"]
    assert chat.session.left == 4 and chat.shifts == [TurnsLeft(1, 4)]
    # A result that was just given belongs to the turn that is answered.
    chat = Chat(280, SYSTEM, user("old"), said("words " * 20), *call[:2])
    chat.session.chat(call[2], GREEDY)
    assert list(chat.template.seen) == [SYSTEM, *call[:3]]


def test_an_answer_that_reaches_the_end_of_the_context_goes_on() -> None:
    chat = Chat(300, SYSTEM, user("one " * 16), said("1 " * 8), user("two"), said("2"))
    params = SamplingParams(temperature=0, max_tokens=245, repeat_penalty=1.2, repeat_last_n=-1)
    done = chat.session.chat("three", params)
    assert len(done.token_ids) == 245 and done.finish_reason == "length"
    assert [shift.messages for shift in chat.shifts] == [2, 4]
    # After each departure it is what a session that begins with the shorter prompt and the answer so far says.
    prompts = [chat.engine.encode_chat([SYSTEM, *chat.session.messages[1 + left : -1]]) for left in (0, 2, 4)]
    rest, n = list(done.token_ids), 0
    for prompt, after in zip(prompts, [*prompts[1:], None], strict=True):
        room = 300 - len(prompt) - n if after is not None else 245 - n
        told = Session(fake_engine(context=300)).complete([*prompt, *rest[:n]], params, max_tokens=room)
        assert list(told.token_ids) == rest[n : n + room]
        n += room
    assert n == 245
    assert chat.session.ids == (*prompts[-1], *done.token_ids)
    assert done.usage.prompt_tokens == len(prompts[0]) and done.usage.completion_tokens == 245
    read = [event for event in chat.events if type(event).__name__ == "PromptProcessed"]
    assert done.timings.prompt_tokens == sum(event.tokens for event in read)  # type: ignore[union-attr]


def test_an_answer_that_fills_the_context_alone_ends() -> None:
    chat = Chat(120, SYSTEM, user("one"), said("1"))
    done = chat.session.chat("two", SamplingParams(temperature=0))
    least = chat.engine.encode_chat([SYSTEM, user("two")])
    assert done.finish_reason == "length" and len(least) + len(done.token_ids) == 120
    assert chat.session.left == 2


def test_a_chat_that_was_edited_is_looked_at_anew() -> None:
    chat = Chat(200, SYSTEM)
    for i in range(8):
        chat.session.chat(f"message {i}", GREEDY)
    assert chat.session.left > 2
    chat.session.messages = [SYSTEM, user("other"), said("words")]
    chat.session.chat("more", GREEDY)
    assert list(chat.template.seen) == [SYSTEM, user("other"), said("words"), user("more")]
    chat.session.clear()
    assert chat.session.left == 0


def test_forks_forget_apart_and_undo_goes_back() -> None:
    chat = Chat(200, SYSTEM)
    while not chat.session.left:
        chat.session.chat("go on", GREEDY)
    left, twin = chat.session.left, chat.session.fork()
    while twin.left == left:
        twin.chat("go on", GREEDY)
    assert chat.session.left == left
    before = list(chat.session.messages)
    answer = before[-1]["content"]
    chat.session.undo()
    assert chat.session.chat("go on", GREEDY).text == answer
    assert chat.session.messages == before and chat.session.left == left


def test_taking_back_what_had_left() -> None:
    chat = Chat(200, SYSTEM)
    while chat.session.left < 4:
        chat.session.chat("go on", GREEDY)
    while len(chat.session.messages) > 3:
        chat.session.undo()
    assert chat.session.left == 0  # of these, none
    text = chat.session.chat("go on", GREEDY).text
    assert text == fresh(200, chat.session.messages[:-1], GREEDY) and len(chat.template.seen) == 4


@pytest.mark.parametrize("n", range(1, 12))
def test_an_interrupt_or_a_cancellation_while_the_rest_is_computed_again(n: int) -> None:
    chat = Chat(300, SYSTEM, user("one " * 20), said("1 " * 20))
    params = SamplingParams(temperature=0, max_tokens=150)
    before, left = list(chat.session.messages), n

    def interrupt() -> None:
        nonlocal left
        if chat.shifts:
            left -= 1
            if left == 0:
                raise Cancelled("x") if n % 2 else KeyboardInterrupt

    chat.decoder.on_layer = interrupt
    if n % 2:
        done = chat.session.chat("two", params)
        assert done.finish_reason == "cancelled" and chat.session.messages[-1] == done.message
    else:
        with pytest.raises(KeyboardInterrupt):
            chat.session.chat("two", params)
        assert chat.session.messages == before
    chat.decoder.on_layer = lambda: None
    whole = list(chat.session.messages)
    text = chat.session.chat("three", GREEDY).text
    assert text == fresh(300, chat.template.seen, GREEDY)
    assert list(chat.template.seen) == [SYSTEM, *whole[1 + chat.session.left :], user("three")]


_TEXTS = st.text("ab ", min_size=0, max_size=60)
_ROLES = st.sampled_from(["user", "user", "assistant", "tool"])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(20, 400),
    st.none() | st.integers(0, 60),
    st.lists(st.lists(_TEXTS, max_size=2), max_size=1),
    st.lists(st.tuples(_ROLES, _TEXTS), max_size=10),
    st.lists(_TEXTS, min_size=1, max_size=6),
)
def test_whatever_the_sizes(
    context: int, most: int | None, systems: list[list[str]], begun: list[tuple[str, str]], asked: list[str]
) -> None:
    system: list[Message] = [{"role": "system", "content": text} for texts in systems for text in texts]
    chat = Chat(context, *system, *[{"role": role, "content": text} for role, text in begun])
    params = SamplingParams(temperature=0, max_tokens=most)
    for text in asked:
        turn = [*chat.session.messages, user(text)]
        try:
            done = chat.session.chat(text, params)
        except ContextLengthError:
            least = chat.engine.encode_chat([*system, user(text)])
            assert len(least) > context and chat.session.messages == turn[:-1]
            continue
        assert chat.session.messages == [*turn, done.message]
        left = chat.session.left
        seen = [*system, *turn[len(system) + left :]]
        assert seen[-1] == user(text)  # whole, and the newest is there
        assert left == 0 or seen[len(system)]["role"] == "user"  # no turn is cut in two
        prompt = chat.engine.encode_chat(seen)
        assert list(chat.session.ids) == [*prompt, *done.token_ids]
        assert len(prompt) + len(done.token_ids) <= context
        if left == len(turn) - len(system) - 1 and most is None:
            assert len(prompt) + len(done.token_ids) == context  # nothing could leave any more
        _check_greedy(chat.engine, prompt, done.token_ids)


def _check_greedy(engine: Engine, prompt: list[int], answer: Sequence[int]) -> None:
    """The last token is what a fresh session says after all the others."""
    if answer:
        told = Session(fake_engine(context=engine.context)).complete([*prompt, *answer[:-1]], GREEDY, max_tokens=1)
        assert told.token_ids == tuple(answer[-1:])
