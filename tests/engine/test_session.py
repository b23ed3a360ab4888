"""Sessions keep what they know, share none of it, and survive interruption at any moment."""

from __future__ import annotations

import pytest

from edgerun.engine import SamplingParams, Session
from edgerun.errors import UsageError
from engine.fakes import VOCAB, FakeDecoder, fake_engine

GREEDY = SamplingParams(temperature=0, max_tokens=8)
ASCII_ONLY = [*range(32), *range(127, VOCAB)]


def fresh(prompt: str | list[int]) -> str:
    return Session(fake_engine()).complete(prompt, GREEDY).text


def test_a_common_prefix_is_not_computed_again() -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY)
    engine = fake_engine(decoder)
    session = Session(engine)
    list(session.answer(engine.encode("Once upon a time"), GREEDY))
    decoder.fed.clear()
    done = list(session.answer(engine.encode("Once upon another time"), GREEDY))[-1].completion
    assert done is not None
    assert done.text == fresh("Once upon another time")
    assert done.usage.reused_tokens == 12  # BOS and "Once upon a"
    assert decoder.fed[0] == len(" another time") - 2


def test_a_prompt_that_is_all_there_costs_one_token() -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY)
    engine = fake_engine(decoder)
    session = Session(engine)
    ids = engine.encode("Once upon a time")
    first = list(session.answer(ids, GREEDY))[-1].completion
    decoder.fed.clear()
    second = list(session.answer(ids, GREEDY))[-1].completion
    assert first is not None
    assert second is not None
    assert first.text == second.text
    assert decoder.fed[0] == 1
    assert second.usage.reused_tokens == len(ids) - 1


def test_complete_goes_on_where_it_stopped() -> None:
    session = Session(fake_engine())
    one = session.complete("Once", GREEDY, max_tokens=5).text
    two = session.complete("", GREEDY, max_tokens=3).text
    assert one + two == fresh("Once")
    three = session.complete(" and", GREEDY).text
    assert three == fresh("Once" + one + two + " and")
    assert len(session.ids) == 1 + len("Once" + one + two + " and" + three)


def test_a_call_that_is_refused_costs_no_token() -> None:
    session = Session(fake_engine())
    said = session.complete("Once", GREEDY).text
    before = session.ids
    with pytest.raises(UsageError, match="logit_bias"):
        session.complete(" and", GREEDY, logit_bias={10 * VOCAB: 1.0})
    assert session.ids == before
    assert session.complete("", GREEDY).text == fresh("Once" + said)


def test_fork_leaves_the_other_alone() -> None:
    session = Session(fake_engine())
    said = session.complete("Once", GREEDY).text
    twin = session.fork()
    assert twin.complete(" left", GREEDY).text == fresh("Once" + said + " left")
    assert session.complete(" right", GREEDY).text == fresh("Once" + said + " right")
    assert twin.ids != session.ids


@pytest.mark.parametrize("n", [0, 1, 2, 5, 13])
def test_rewind_forgets_the_last_tokens(n: int) -> None:
    session = Session(fake_engine())
    session.complete("Once", GREEDY)
    kept = session.ids[: len(session.ids) - n]
    session.rewind(n)
    assert session.ids == kept
    if kept:
        assert session.complete("", GREEDY).text == fresh(list(kept))


def test_rewind_beyond_the_beginning() -> None:
    with pytest.raises(UsageError, match="holds 0"):
        Session(fake_engine()).rewind(1)


def test_chat_keeps_messages_and_reuses_the_turns_before() -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY)
    session = Session(fake_engine(decoder), messages=[{"role": "system", "content": "Be brief."}])
    first = session.chat("Hi", GREEDY)
    assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
    assert session.messages[-1] == first.message
    second = session.chat("And?", GREEDY)
    assert second.usage.reused_tokens >= first.usage.prompt_tokens
    other = Session(fake_engine(), messages=session.messages[:3])
    assert other.chat("And?", GREEDY).text == second.text


def test_the_templates_bos_is_not_doubled() -> None:
    engine = fake_engine()
    assert engine.encode_chat("Hi").count(engine.tokenizer.bos_id) == 1


def test_tools_and_template_variables_reach_the_template() -> None:
    engine = fake_engine()
    ids = engine.encode_chat("Hi", [{"name": "clock"}], {"enable_thinking": False})
    assert "[enable_thinking=False][tool clock]" in engine.tokenizer.decode(ids)


def test_undo_takes_back_a_turn() -> None:
    session = Session(fake_engine())
    first = session.chat("Hi", GREEDY).text
    session.chat("More", GREEDY)
    assert session.undo() == {"role": "user", "content": "More"}
    assert session.undo() == {"role": "user", "content": "Hi"}
    assert session.messages == []
    assert session.chat("Hi", GREEDY).text == first
    session.clear()
    assert (session.messages, session.ids) == ([], ())
    with pytest.raises(UsageError, match="no user"):
        session.undo()


@pytest.mark.parametrize("message", [[], [{"content": "x"}], ["x"], [{"role": 3}]])
def test_messages_that_are_none(message: object) -> None:
    with pytest.raises(UsageError, match="message"):
        Session(fake_engine()).chat(message, GREEDY)  # type: ignore[arg-type]


def test_closing_a_stream_keeps_the_reply_so_far() -> None:
    session = Session(fake_engine())
    stream = session.stream_chat("Hi", GREEDY)
    said = next(stream).text + next(stream).text
    stream.close()  # type: ignore[attr-defined]
    assert session.messages[-1] == {"role": "assistant", "content": said}
    assert session.chat("And?", GREEDY).text


def test_a_later_call_voids_an_earlier_stream() -> None:
    session = Session(fake_engine())
    stream = session.stream("Once", GREEDY)
    next(stream)
    expected = fresh("Twice")
    assert "".join(c.text for c in session.answer(session._engine.encode("Twice"), GREEDY)) == expected
    with pytest.raises(UsageError, match="overtaken"):
        list(stream)


@pytest.mark.parametrize("later", ["chat", "unread", "clear", "rewind"])
def test_a_stream_that_ends_after_a_later_call_changes_nothing(later: str) -> None:
    session = Session(fake_engine())
    stream = session.stream_chat("Once", GREEDY)
    next(stream)
    kept = []
    if later == "chat":
        session.chat("Twice", GREEDY)
    elif later == "unread":
        kept.append(session.stream_chat("Twice", GREEDY))
        next(kept[0])
    elif later == "clear":
        session.clear()
    else:
        session.rewind(1)
    before = (list(session.messages), session.ids, session.cached_tokens)
    stream.close()  # type: ignore[attr-defined]
    assert (session.messages, session.ids, session.cached_tokens) == before
    for _ in kept[:1]:
        said = "".join(chunk.text for chunk in kept[0])
        assert session.messages[-1]["content"].endswith(said)
        assert session.messages[0]["content"] == "Twice"


class Interrupt:
    """Ctrl-C in the n-th layer that is computed."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9, 14, 40])
def test_ctrl_c_in_any_layer_leaves_the_session_usable(n: int) -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY)
    engine = fake_engine(decoder, context=1000)
    session = Session(engine)
    session.chat("Hi", GREEDY, max_tokens=2)
    before = list(session.messages)
    decoder.on_layer = Interrupt(n)
    with pytest.raises(KeyboardInterrupt):
        session.chat("Tell me more. " * 40, GREEDY, max_tokens=50)
    decoder.on_layer = lambda: None
    assert session.messages == before
    assert session.cached_tokens == session._context.sequence.length
    expected = Session(fake_engine(context=1000), messages=before).chat("And?", GREEDY).text
    assert session.chat("And?", GREEDY).text == expected
    # The lock was given back: another thread's session works too.
    assert Session(engine).complete("Once", GREEDY).text == fresh("Once")


def test_tokens_that_only_one_side_knows_of_did_not_happen() -> None:
    session = Session(fake_engine())
    said = session.complete("Once", GREEDY).text
    session._context.sequence.held.extend([1, 2, 3])  # type: ignore[attr-defined]
    assert session.complete(" more", GREEDY).text == fresh("Once" + said + " more")


@pytest.mark.parametrize("n", [0, 1, 8, 9, 10, 30])
def test_rewinding_beyond_what_a_window_keeps_computes_all_again(n: int) -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY, window=10)
    session = Session(fake_engine(decoder))
    session.complete("Once upon a time there was", GREEDY)
    kept, cached = session.ids[: len(session.ids) - n], session.cached_tokens
    session.rewind(n)
    assert session.ids == kept
    assert session.cached_tokens == (min(cached, len(kept)) if len(kept) > cached - 10 else 0)
    twin = session.fork()
    assert session.complete("", GREEDY).text == twin.complete("", GREEDY).text == fresh(list(kept))


def test_a_prompt_that_leaves_the_last_one_early_is_computed_whole() -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY, window=10)
    engine = fake_engine(decoder)
    session = Session(engine)
    list(session.answer(engine.encode("Once upon a time"), GREEDY))
    done = list(session.answer(engine.encode("Once upon another time"), GREEDY))[-1].completion
    assert done is not None
    assert (done.text, done.usage.reused_tokens) == (fresh("Once upon another time"), 0)
