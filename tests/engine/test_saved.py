"""Sessions in files: they go on as if nothing had happened, and nothing in a file is believed that might not be so."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.engine import Engine, SamplingParams, Session
from edgerun.engine.saved import KIND, VERSION, is_session, read_session
from edgerun.errors import ContextLengthError, EdgerunError, FormatError, NotFoundError, UnsupportedError, UsageError
from edgerun.events import Event, Notice
from edgerun.formats.checked_tensors import CheckedTensors, tensor_file
from edgerun.weights.identity import ModelIdentity
from engine.fakes import VOCAB, FakeDecoder, fake_engine

GREEDY = SamplingParams(temperature=0, max_tokens=8)
ASCII_ONLY = [*range(32), *range(127, VOCAB)]


class Restarted:
    """Another process's engine, and what it says. `arithmetic`: of its decoder."""

    def __init__(self, arithmetic: str | None = None, **more: Any) -> None:
        self.events: list[Event] = []
        self.decoder = FakeDecoder(forbid=ASCII_ONLY)
        if arithmetic is not None:
            self.decoder.arithmetic = arithmetic
        self.engine = fake_engine(self.decoder, events=self.events.append, **more)

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "chat.safetensors"


def chatted(engine: Engine | None = None) -> Session:
    session = Session(engine or fake_engine(), messages=[{"role": "system", "content": "Be brief."}])
    session.chat("Hi", GREEDY)
    session.chat([{"role": "user", "content": "é🦙", "extra": {"a": [1, None]}}], GREEDY)
    return session


def test_it_goes_on_as_if_nothing_had_happened(path: Path) -> None:
    session = chatted()
    session.save(path)
    after = Restarted()
    loaded = Session.load(after.engine, path)
    assert (loaded.messages, loaded.ids, loaded.cached_tokens) == (session.messages, session.ids, session.cached_tokens)
    assert after.decoder.fed == []
    one, two = (each.chat("And?", GREEDY) for each in (session, loaded))
    assert (one.text, one.usage) == (two.text, two.usage)
    assert two.usage.reused_tokens > 50
    assert after.notices == []


def test_others_are_answered_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatted().save(path)
    engine, said, read = fake_engine(), [], CheckedTensors.read

    def read_slowly(file: CheckedTensors, name: str) -> Any:
        def ask() -> None:
            said.append(Session(engine).complete("Hello", GREEDY).text)

        other = threading.Thread(target=ask, daemon=True)
        other.start()
        other.join(20)
        return read(file, name)

    monkeypatch.setattr(CheckedTensors, "read", read_slowly)
    loaded = Session.load(engine, path)
    assert len(said) == 2, "one while the ids were read, one during keys and values"
    assert loaded.cached_tokens > 50


def test_whoever_uses_a_session_that_is_being_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read then belongs to nobody, and is forgotten."""
    chatted().save(path)
    engine, read = fake_engine(), CheckedTensors.read
    context = engine.new_context()

    def read_and_cut(file: CheckedTensors, name: str) -> Any:
        context.truncate(0)
        return read(file, name)

    monkeypatch.setattr(CheckedTensors, "read", read_and_cut)
    with pytest.raises(UsageError, match="was used while it was read"):
        read_session(path, engine, context)
    assert len(context) == 0


def test_text_that_is_continued(path: Path) -> None:
    session = Session(fake_engine())
    said = session.complete("Once", GREEDY).text
    session.save(path)
    loaded = Session.load(fake_engine(), str(path))
    assert loaded.complete("", GREEDY).text == session.complete("", GREEDY).text
    assert loaded.complete(" and", GREEDY).text == session.complete(" and", GREEDY).text
    assert session.ids == loaded.ids and said


def test_an_empty_session(path: Path) -> None:
    Session(fake_engine()).save(path)
    loaded = Session.load(fake_engine(), path)
    assert (loaded.messages, loaded.ids) == ([], ())
    assert loaded.chat("Hi", GREEDY).text == Session(fake_engine()).chat("Hi", GREEDY).text


def test_messages_that_no_text_could_be(path: Path) -> None:
    session = Session(fake_engine(), messages=[{"role": "user", "content": "a\udcff\ud800b"}])
    session.save(path)
    assert Session.load(fake_engine(), path).messages == session.messages


def test_what_has_left_stays_away(path: Path) -> None:
    session = Session(fake_engine(context=200), context_shift=True)
    while not session.left:
        session.chat("go on", GREEDY)
    session.save(path)
    loaded = Session.load(fake_engine(context=200), path, context_shift=True)
    assert (loaded.left, loaded.messages) == (session.left, session.messages)
    assert loaded.chat("more", GREEDY).usage == session.chat("more", GREEDY).usage
    with pytest.raises(ContextLengthError):
        Session.load(fake_engine(context=200), path, context_shift=False).chat("more " * 10, GREEDY)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"identity": lambda: ModelIdentity("another file", "a header")}, "the model's file is not the one"),
        ({"identity": lambda: ModelIdentity("another file", "another header")}, "another model"),
        ({"context": 60}, "the context 60"),
        ({"arithmetic": "of another machine"}, "other kernels"),
    ],
    ids=["file", "model", "context", "arithmetic"],
)
def test_what_was_computed_otherwise_is_computed_again(path: Path, other: dict[str, Any], reason: str) -> None:
    session = chatted()
    session.save(path)
    after = Restarted(**other)
    loaded = Session.load(after.engine, path)
    assert len(after.notices) == 1 and reason in after.notices[0]
    assert loaded.messages == session.messages and loaded.cached_tokens == 0
    if "context" not in other:
        done = loaded.chat("And?", GREEDY)
        assert done.usage.reused_tokens == 0
        assert done.text == session.chat("And?", GREEDY).text


def test_text_of_another_model_means_nothing_here(path: Path) -> None:
    session = Session(fake_engine())
    said = session.complete("Once", GREEDY).text
    session.save(path)
    with pytest.raises(UnsupportedError, match="another model"):
        Session.load(fake_engine(identity=lambda: ModelIdentity("another", "one")), path)
    with pytest.raises(ContextLengthError, match="13 tokens"):
        Session.load(fake_engine(context=10), path)
    after = Restarted(arithmetic="other")
    loaded = Session.load(after.engine, path)  # ids still mean the same
    assert loaded.ids == session.ids and loaded.cached_tokens == 0 and after.notices
    assert loaded.complete("", GREEDY).text == session.complete("", GREEDY).text != said


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="a system without owners and modes")
@pytest.mark.parametrize("where", ["file", "folder"])
def test_keys_and_values_that_others_may_have_written(path: Path, where: str) -> None:
    session = chatted()
    session.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (path if where == "file" else path.parent).chmod(0o777)
    after = Restarted()
    loaded = Session.load(after.engine, path)
    assert loaded.cached_tokens == 0 and "others may write" in after.notices[0]
    assert loaded.chat("And?", GREEDY).text == session.chat("And?", GREEDY).text


def test_files_that_are_none(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Session.load(fake_engine(), path)
    path.parent.mkdir()
    for content in (b"", b"\0" * 8, b"{}", b"\xff" * 100, (2).to_bytes(8, "little") + b"{}", bytes(range(256)) * 10):
        path.write_bytes(content)
        with pytest.raises(FormatError):
            Session.load(fake_engine(), path)
        assert not is_session(path)
    with pytest.raises(FormatError):
        Session.load(fake_engine(), tmp_path)
    for wrong in ("\0", "", 5, None, b"x", ["x"]):
        with pytest.raises(UsageError):
            Session.load(fake_engine(), wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            chatted().save(wrong)  # type: ignore[arg-type]
    chatted().save(path)
    assert is_session(path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The file with another JSON header (of safetensors), as a hostile hand would write it."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    made = json.dumps(header).encode()
    path.write_bytes(len(made).to_bytes(8, "little") + made + data[8 + n :])


def test_another_version_is_refused(path: Path) -> None:
    chatted().save(path)
    rewritten(path, lambda header: header["__metadata__"].update(version=str(VERSION + 1)))
    with pytest.raises(UnsupportedError, match="version '2'"):
        Session.load(fake_engine(), path)
    assert is_session(path)  # it may be written over
    rewritten(path, lambda header: header["__metadata__"].update(kind=KIND + "s"))
    with pytest.raises(FormatError, match="not an edgerun session"):
        Session.load(fake_engine(), path)


def test_every_byte_counts(path: Path) -> None:
    """Whatever single byte is another, or missing: refused, or the same session."""
    session = chatted()
    session.save(path)
    whole = path.read_bytes()
    engine = fake_engine()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            loaded = Session.load(engine, path)
        except EdgerunError:
            continue
        assert (loaded.messages, loaded.ids) == (session.messages, session.ids), at
        assert loaded.cached_tokens in (0, session.cached_tokens)
    for n in (*range(0, len(whole), 101), len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            Session.load(engine, path)


_ACTIONS = st.tuples(
    st.sampled_from(["chat", "chat", "chat", "complete", "rewind", "undo", "fork", "clear"]), st.integers(0, 40)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([80, 150, 300]), st.booleans(), st.lists(_ACTIONS, max_size=20))
def test_whatever_happened_before(path: Path, context: int, shifts: bool, actions: list[tuple[str, int]]) -> None:
    """A session that is saved and loaded after each step, and one that never is, are the same to the last token."""
    engine = fake_engine(context=context)
    kept = Session(engine, messages=[{"role": "system", "content": "s"}], context_shift=shifts)
    saved = Session(engine, messages=kept.messages, context_shift=shifts)
    for action, n in actions:
        said = []
        for session in (kept, saved):
            try:
                if action in ("chat", "complete"):
                    said.append(getattr(session, action)("m" * n, GREEDY).token_ids)
                elif action == "rewind":
                    session.rewind(n)
                elif action == "fork":
                    session.fork().chat("and?", GREEDY)
                else:
                    getattr(session, action)()
            except (ContextLengthError, UsageError) as error:
                said.append(str(error))
        assert said[1:] == said[:1] or not said
        saved.save(path)
        saved = Session.load(engine, path, context_shift=shifts)
        for name in ("messages", "ids", "cached_tokens", "left"):
            assert getattr(saved, name) == getattr(kept, name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_headers(path: Path, data: st.DataObject) -> None:
    """A header that somebody wrote with right checksums: an error of ours, or a session that is one."""
    json_like = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text(max_size=5)}
    )
    number = st.integers(-2, 6) | json_like
    header = {
        "file": data.draw(st.sampled_from(["a file", 3, None])),
        "header": data.draw(st.sampled_from(["a header", "x", []])),
        "arithmetic": data.draw(st.sampled_from(["numpy's random numbers", "x"])),
        "messages": data.draw(st.lists(message, max_size=3) | json_like),
        "left": data.draw(number),
        "cached": data.draw(number),
        "stepped": data.draw(number),
    }
    ids = np.array(data.draw(st.lists(st.integers(-2, VOCAB + 2), max_size=5)), np.int32)
    held = np.array(data.draw(st.lists(st.integers(0, VOCAB), max_size=5)), np.int32)
    arrays = {"ids": ids, "held": held}
    forms = {name: ("I32", array.shape) for name, array in arrays.items()}
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(b"".join(map(bytes, tensor_file(KIND, VERSION, header, forms, arrays.__getitem__))))
    try:
        loaded = Session.load(fake_engine(), path)
    except (FormatError, ContextLengthError):
        return
    assert loaded.cached_tokens <= len(loaded.ids) and all(0 <= token < VOCAB for token in loaded.ids)
    loaded.chat("Hi", GREEDY)


def test_saving_leaves_the_old_file_where_the_new_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = chatted()
    session.save(path)
    before = path.read_bytes()
    session.chat("more", GREEDY)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EdgerunError, match="cannot be written: No space left"):
            session.save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    session.messages.append({"role": "user", "content": object()})
    with pytest.raises(UsageError, match="JSON"):
        session.save(path)
    assert path.read_bytes() == before


def test_an_interrupt_while_it_is_read_or_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = chatted()
    session.save(path)
    engine = fake_engine()

    def interrupt(file: CheckedTensors, name: str) -> None:
        if name == "held":
            raise KeyboardInterrupt
        return read(file, name)

    read = CheckedTensors.read
    with monkeypatch.context() as patch:
        patch.setattr(CheckedTensors, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Session.load(engine, path)
    loaded = Session.load(engine, path)  # nothing is locked
    assert loaded.chat("And?", GREEDY).text == session.chat("And?", GREEDY).text


def test_a_closed_session_and_an_engine_that_nobody_knows(path: Path) -> None:
    session = chatted()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.save(path)
    with pytest.raises(UnsupportedError, match="which model"):
        chatted(fake_engine(identity=None)).save(path)
    assert not path.exists()
