"""A chat outlives whatever goes wrong in a command, and is not lost when the program is ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import load
from cli.terminal import Terminal
from edgerun import LLM
from edgerun.cli.chat import Chat
from edgerun.cli.chat_commands import obey
from edgerun.cli.chat_input import whole_letters
from edgerun.cli.progress import ProgressBars
from edgerun.cli.saved_chat import session_path
from edgerun.cli.talk import attend, speak
from edgerun.errors import UsageError
from edgerun.paths import data_dir

SURROGATE = "a\udcff\ud800b"


@pytest.fixture(scope="module")
def llm(chat_model: Path) -> Iterator[LLM]:
    with load(chat_model) as llm:
        yield llm


@pytest.fixture
def chat(llm: LLM) -> Chat:
    chat = Chat(llm, name="tiny", chats=True, options={"max_tokens": 3, "temperature": 0.0})
    speak(chat, "hello", ProgressBars())
    return chat


def saved(options: str = "{}", messages: str = '[{"role": "user", "content": "x"}]') -> str:
    return f'{{"model": "m", "options": {options}, "messages": {messages}}}'


# What a file to be loaded may hold: damaged, hostile, or of something else.
FILES = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"messages": ["\xff"]}',
    "binary": bytes(range(256)),
    "null": b"null",
    "a number": b"5",
    "a list": b"[]",
    "deep lists": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep within messages": saved(messages="[" * 100_000 + "]" * 100_000).encode(),
    "deep within options": saved(options='{"stop": %s}' % ("[" * 100_000 + "]" * 100_000)).encode(),
    "deep objects": b'{"a":' * 100_000,
    "no messages": b'{"options": {}}',
    "messages of numbers": saved(messages="[1]").encode(),
    "role of a number": saved(messages='[{"role": 1, "content": "x"}]').encode(),
    "no content": saved(messages='[{"role": "user"}]').encode(),
    "content of parts": saved(messages='[{"role": "user", "content": []}]').encode(),
    "stop of 5": saved(options='{"stop": 5}').encode(),
    "stop of empties": saved(options='{"stop": [""]}').encode(),
    "temperature of 400 digits": saved(options='{"temperature": %s}' % ("9" * 400)).encode(),
    "temperature of 5000 digits": saved(options='{"temperature": %s}' % ("9" * 5000)).encode(),
    "temperature NaN": saved(options='{"temperature": NaN}').encode(),
    "temperature 1e999": saved(options='{"temperature": 1e999}').encode(),
    "options of a list": saved(options="[]").encode(),
    "top_k of text": saved(options='{"top_k": "5"}').encode(),
    "seed of -1": saved(options='{"seed": -1}').encode(),
    "max_tokens of true": saved(options='{"max_tokens": true}').encode(),
}
COMMANDS = [
    "/nonsense",
    "/",
    "/ load x",
    "/load",
    "/save",
    "/load ~nouser/x.json",
    "/save ~nouser/x.json",
    "/load \0.json",
    "/save \0.json",
    "/save x\0",
    f"/load {SURROGATE}.json",
    f"/save {SURROGATE}.json",
    f"/save {SURROGATE}",
    "/load " + "x" * 300,
    "/save " + "x" * 300,
    "/save " + "x" * 300 + ".json",
    "/save " + "d/" * 3000 + "x.json",
    "/load /",
    "/save /dev/null/x.json",
    "/load /dev/null/x.json",
    "/save /proc/nowhere/x.json",
    "/set temperature " + "9" * 400,
    "/set temperature nan",
    "/set temperature 1e999",
    "/set seed " + "9" * 5000,
    "/set seed -1",
    "/set top_k five",
    "/set top_k 1.5",
    "/set max_tokens True",
    "/set stop",
    "/set \0 5",
    f"/set {SURROGATE} 5",
    "/set logit_bias 5",
    "/stats maybe",
]


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_whatever_a_file_holds_the_chat_goes_on(chat: Chat, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    before = (chat.messages, dict(chat.options), chat.last)
    attend(chat, f"/load {path}", ProgressBars())
    assert (chat.messages, chat.options, chat.last) == before
    attend(chat, f"/save {path}", ProgressBars())  # nobody said that it may go
    assert path.read_bytes() == content
    speak(chat, "more", ProgressBars())
    assert len(chat.messages) == len(before[0]) + 2


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: ascii(line)[:30])
def test_whatever_is_typed_the_chat_goes_on(
    chat: Chat, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (chat.messages, dict(chat.options))
    attend(chat, line, ProgressBars())
    assert (chat.messages, chat.options) == before
    assert capsys.readouterr().err.startswith("edgerun: ")
    assert list(tmp_path.glob("*.json")) == []


def test_a_chat_with_lone_surrogates_is_saved_and_comes_back(chat: Chat, llm: LLM, tmp_path: Path) -> None:
    chat.system = SURROGATE
    chat.options["stop"] = (SURROGATE,)
    obey(chat, f"/save {tmp_path / 'chat.json'}")
    json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
    other = Chat(llm, name="tiny", chats=True, options={})
    obey(other, f"/load {tmp_path / 'chat.json'}")
    assert (other.messages, other.options) == (chat.messages, chat.options)
    speak(other, f"and {SURROGATE}", ProgressBars())


def test_saving_overwrites_saved_chats_and_asks_for_anything_else(chat: Chat, tmp_path: Path) -> None:
    path, asked = tmp_path / "notes.json", []
    path.write_text('{"mine": 1}')
    chat.confirms = lambda question: bool(asked.append(question))
    with pytest.raises(UsageError, match="left as it is"):
        obey(chat, f"/save {path}")
    assert path.read_text() == '{"mine": 1}' and "notes.json" in asked[0]
    chat.confirms = lambda question: True
    obey(chat, f"/save {path}")
    chat.confirms = lambda question: bool(asked.append(question))
    obey(chat, f"/save {path}")
    assert len(asked) == 1
    assert json.loads(path.read_text())["messages"] == chat.messages


def test_saving_leaves_the_old_chat_where_the_new_cannot_be_written(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chats" / "chat.json"
    obey(chat, f"/save {path}")
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    assert before.keys() == {path, session_path(path)}
    speak(chat, "more", ProgressBars())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    attend(chat, f"/save {path}", ProgressBars())
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), KeyboardInterrupt()])
def test_errors_and_interrupts_of_a_reply(chat: Chat, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    before = chat.messages

    def fail(*arguments: object, **more: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(chat, "reply", fail)
        attend(chat, "more", ProgressBars())
    assert chat.messages == before
    attend(chat, "more", ProgressBars())
    assert len(chat.messages) == len(before) + 2


def test_bytes_that_are_no_letters() -> None:
    assert whole_letters("a\udcffb\ud83e\udd99") == "a\ufffdb🦙"


@pytest.fixture
def command(chat_model: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "edgerun", "run", str(chat_model), "-n", "3", "--temperature", "0")


def test_an_evening_of_mistakes_on_a_terminal(
    command: tuple[str, ...], chat_model: Path, tmp_path: Path, user_home: Path
) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "stop.json").write_text('{"messages": [], "options": {"stop": 5}}')
    (tmp_path / "mine.json").write_text("[1, 2]")
    with Terminal(*command) as terminal:
        terminal.say("hello", "as long as it may be")
        for line in (
            f"/load {tmp_path}/deep.json",
            f"/load {tmp_path}/stop.json",
            "/load ~nouser/x.json",
            "/save ~nouser/x.json",
            "/save /dev/null/x.json",
            "/set temperature " + "9" * 400,
            "/nonsense",
        ):
            terminal.say(line, "edgerun: ")
        terminal.say(b"bytes \xff\xfe", "as long as it may be")
        terminal.say(f"/save {tmp_path}/mine.json", "[y/N]")
        terminal.send("n\r")
        terminal.expect("left as it is")
        terminal.say(f"/save {tmp_path}/chat.json", "saved")
        terminal.expect(">>>")
        terminal.send("/bye\r")
        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.rest()
    said = [m["content"] for m in json.loads((tmp_path / "chat.json").read_text())["messages"] if m["role"] == "user"]
    assert said == ["hello", "bytes \ufffd\ufffd"]
    assert (tmp_path / "mine.json").read_text() == "[1, 2]"


def test_a_home_that_cannot_be_written(command: tuple[str, ...], user_home: Path) -> None:
    """Below a file no folder can be made, whoever one is (a folder's mode does not stop root)."""
    (user_home / "file").write_text("")
    with Terminal(*command, HOME=str(user_home / "file"), XDG_DATA_HOME=str(user_home / "file" / "data")) as terminal:
        terminal.expect("not kept for the next chat")
        terminal.say("hello", "as long as it may be")
        terminal.say("/save hello", "cannot be written")
        terminal.expect(">>>")
        terminal.send("\x04")
        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.rest()


def test_a_history_that_cannot_be_written_or_read(command: tuple[str, ...], user_home: Path) -> None:
    (data_dir() / "history").mkdir(parents=True)  # a folder is no file
    with Terminal(*command) as terminal:
        terminal.say("hello", "as long as it may be")
        terminal.say("more", "as long as it may be")
        terminal.expect(">>>")
        terminal.send("\x04")
        assert terminal.process.wait(20) == 0
        seen = terminal.rest()
        assert "Traceback" not in seen and "Unhandled" not in seen


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "hang up"])
def test_a_chat_that_is_ended_is_kept(command: tuple[str, ...], llm: LLM, how: str, user_home: Path) -> None:
    with Terminal(*command) as terminal:
        terminal.say("hello", "as long as it may be")
        terminal.expect(">>>")
        if how == "hang up":
            terminal.process.send_signal(signal.SIGHUP)  # as the system does first for the terminal of a session
            terminal.hang_up()
        else:
            terminal.process.send_signal(getattr(signal, how))
        drain = threading.Thread(target=terminal.rest) if how != "hang up" else threading.Thread()
        drain.start()
        code = terminal.process.wait(20)
        drain.join()
        assert code == 128 + (signal.SIGTERM if how == "SIGTERM" else signal.SIGHUP)
        assert "Traceback" not in terminal.seen
    chat = Chat(llm, name="tiny", chats=True, options={})
    obey(chat, "/load interrupted")
    assert [m["content"] for m in chat.messages if m["role"] == "user"] == ["hello"]
