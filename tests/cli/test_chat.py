"""The chat: its commands in this process, and once on a real (pseudo) terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Program, Run, load
from cli.terminal import Terminal
from edgerun import LLM
from edgerun.api import CancelToken
from edgerun.cli.chat import Chat
from edgerun.cli.chat_commands import obey
from edgerun.cli.chat_input import in_block, unfenced
from edgerun.cli.progress import ProgressBars
from edgerun.cli.talk import speak
from edgerun.errors import FormatError, NotFoundError, UsageError


@pytest.fixture(scope="module")
def llm(chat_model: Path) -> Iterator[LLM]:
    with load(chat_model) as llm:
        yield llm


@pytest.fixture
def chat(llm: LLM) -> Chat:
    return Chat(llm, name="tiny", chats=True, options={"max_tokens": 6, "temperature": 0.0})


def test_replies_are_remembered(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    speak(chat, "hello", ProgressBars())
    said = capsys.readouterr().out
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert said == chat.messages[1]["content"] + "\n"
    speak(chat, "more", ProgressBars())
    assert chat.last is not None and chat.last.usage.reused_tokens > 5


def test_system(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    obey(chat, "/system be brief")
    speak(chat, "hello", ProgressBars())
    assert chat.messages[0] == {"role": "system", "content": "be brief"}
    obey(chat, "/clear")
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    obey(chat, "/system -")
    assert chat.messages == [] and "(no system message)" in capsys.readouterr().out


def test_set(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    obey(chat, "/set top_k 5")
    obey(chat, "/set min-p 0.25")
    obey(chat, "/set stop the end")
    assert chat.options == {
        "max_tokens": 6,
        "temperature": 0.0,
        "top_k": 5,
        "min_p": 0.25,
        "stop": ("the end",),
    }
    obey(chat, "/set max_tokens default")
    assert "max_tokens" not in chat.options
    obey(chat, "/set")
    assert "min_p           0.25" in capsys.readouterr().out
    for wrong in ("top_k", "top_k five", "colour red", "top_p 2", "seed -1"):
        with pytest.raises(UsageError):
            obey(chat, f"/set {wrong}")


def test_retry(chat: Chat) -> None:
    with pytest.raises(UsageError):
        obey(chat, "/retry")
    speak(chat, "hello", ProgressBars())
    before = chat.messages
    assert obey(chat, "/retry") == "hello"
    assert chat.messages == []
    speak(chat, "hello", ProgressBars())
    assert chat.messages == before


def test_save_and_load(chat: Chat, llm: LLM, tmp_path: Path, user_home: Path) -> None:
    obey(chat, "/system be brief")
    speak(chat, "hello", ProgressBars())
    for name in ("first", str(tmp_path / "deep" / "chat.json")):
        obey(chat, f"/save {name}")
        other = Chat(llm, name="tiny", chats=True, options={})
        obey(other, f"/load {name}")
        assert (other.messages, other.options) == (chat.messages, chat.options)
    assert list(user_home.rglob("chats/first.json"))
    for name, error in (("absent", NotFoundError), ("", UsageError), ("../x", UsageError)):
        with pytest.raises(error):
            obey(chat, f"/load {name}")
    for content in ("{", "[]", '{"messages": [{"role": 1}]}', '{"messages": [], "options": {"top_p": 3}}'):
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises((FormatError, UsageError)):
            obey(chat, f"/load {tmp_path / 'wrong.json'}")
    assert chat.messages[1]["content"] == "hello"


def test_stats_help_bye(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    obey(chat, "/stats")
    obey(chat, "/stats on")
    speak(chat, "hello", ProgressBars())
    obey(chat, "/help")
    out, err = capsys.readouterr()
    assert "(no reply yet)" in out and "tokens/s" in err
    for name in ("help", "system", "set", "stats", "save", "load", "retry", "clear", "bye"):
        assert f"/{name}" in out
    obey(chat, "/bye")
    assert chat.leaving
    with pytest.raises(UsageError, match="no command /nonsense"):
        obey(chat, "/nonsense")


def test_without_a_template(llm: LLM) -> None:
    chat = Chat(llm, name="base", chats=False, options={"max_tokens": 4})
    speak(chat, "the in", ProgressBars())
    assert chat.messages == [] and obey(chat, "/retry") == "the in"
    for command in ("/system x", "/save x", "/load x"):
        with pytest.raises(UsageError, match="template"):
            obey(chat, command)


@pytest.mark.parametrize(
    ("text", "open_", "message"),
    [
        ("one line", False, "one line"),
        ('"""', True, '"""'),
        ('"""a\nb', True, '"""a\nb'),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\na\n\nb\n"""', False, "a\n\nb"),
        ('say """x"""', False, 'say """x"""'),
    ],
)
def test_blocks(text: str, open_: bool, message: str) -> None:
    assert in_block(text) is open_
    assert unfenced(text) == message


@pytest.fixture
def terminal(chat_model: Path) -> Iterator[Terminal]:
    command = (sys.executable, "-m", "edgerun", "run", str(chat_model), "-c", "100000", "--temperature", "0")
    with Terminal(*command) as terminal:
        yield terminal


def test_a_chat_on_a_terminal(terminal: Terminal, user_home: Path, tmp_path: Path) -> None:
    terminal.expect(">>>")
    terminal.send("/set max_tokens 5\r")
    terminal.expect(">>>")
    terminal.send("hello\r")
    terminal.expect("as long as it may be")
    terminal.expect(">>>")
    terminal.send('"""one\rtwo"""\r')
    terminal.expect("as long as it may be")
    terminal.expect(">>>")
    terminal.send("three\x1b\rfour\r")
    terminal.expect("as long as it may be")
    terminal.expect(">>>")
    terminal.send("/set max_tokens default\r")
    terminal.expect(">>>")
    terminal.send("go on\r")
    time.sleep(1.0)
    assert terminal.process.poll() is None
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.expect("(stopped)", timeout_s=10)
    terminal.expect(">>>")
    terminal.send("half a line\x03")
    terminal.expect("/bye leaves")
    terminal.expect(">>>")
    terminal.send("/stats\r")
    terminal.expect("peak memory")
    terminal.expect(">>>")
    path = tmp_path / "chat.json"
    terminal.send(f"/save {path}\r")
    terminal.expect("saved")
    terminal.expect(">>>")
    terminal.send("/bye\r")
    assert terminal.process.wait(20) == 0
    said = [m["content"] for m in json.loads(path.read_text())["messages"] if m["role"] == "user"]
    assert said == ["hello", "one\ntwo", "three\nfour", "go on"]
    [history] = user_home.rglob("history")
    assert "+hello" in history.read_text()


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.expect(">>>")
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0


def test_lines_from_a_pipe_are_messages(run: Run, program: Program, chat_model: Path, chat: Chat) -> None:
    """Each is answered within the chat; where one goes wrong the others are answered, and the exit code is 1. `run`
    takes all of it as one."""
    lines = 'hello\n\n"""more\nof it"""\n/nope\n/system\nthe end'
    arguments = "-n", "6", "--temperature", "0"
    piped = program("chat", chat_model, *arguments, stdin=lines)
    expected = ""
    for text in ("hello", "more\nof it", "the end"):
        if text == "the end":
            expected += "(no system message)\n"
        chat.system = None
        for _ in chat.reply(text, CancelToken()):
            pass
        expected += chat.messages[-1]["content"] + "\n"
    assert piped.stdout == expected
    assert piped.returncode == 1 and "no command /nope" in piped.stderr
    assert run("chat", chat_model, *arguments, stdin="hello\n").exit_code == 0
    assert run("run", chat_model, *arguments, stdin="hello\nmore").stdout.count("\n") == 1
    not_text = program("chat", chat_model, *arguments, stdin="hello\n\udcff\n", errors="surrogateescape")
    assert not_text.returncode == 2 and "not UTF-8" in not_text.stderr
