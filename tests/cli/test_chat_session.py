"""Chats that go on where they were: /save and /load with what the session holds, and --session."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from tiny_model import make_tiny_model

from cli.conftest import Run, load
from cli.terminal import Terminal
from edgerun import LLM
from edgerun.cli.chat import Chat
from edgerun.cli.chat_commands import obey
from edgerun.cli.progress import ProgressBars
from edgerun.cli.saved_chat import chat_path, session_path
from edgerun.cli.talk import attend, speak
from edgerun.errors import UsageError

SHORT = ("-n", "12", "--temperature", "0")
GREEDY = {"max_tokens": 12, "temperature": 0.0}


@pytest.fixture(scope="module")
def llm(chat_model: Path) -> Iterator[LLM]:
    with load(chat_model) as llm:
        yield llm


def new_chat(llm: LLM) -> Chat:
    return Chat(llm, name="tiny", chats=True, options=dict(GREEDY))


def last_reply(chat: Chat) -> tuple[str, int]:
    """Its text, and how many tokens of the prompt were there."""
    assert chat.last is not None
    return chat.messages[-1]["content"], chat.last.usage.reused_tokens


def test_a_loaded_chat_computes_nothing_again(llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = new_chat(llm)
    obey(chat, "/system be brief")
    speak(chat, "hello", ProgressBars())
    obey(chat, f"/save {tmp_path}/chat.json")
    said = capsys.readouterr().err
    assert "saved" in said and "MiB of keys and values beside it" in said or "KiB" in said
    other = new_chat(llm)
    speak(other, "something else", ProgressBars())
    obey(other, f"/load {tmp_path}/chat.json")
    for each in (chat, other):
        speak(each, "more", ProgressBars())
    assert last_reply(chat) == last_reply(other) and last_reply(chat)[1] > 20
    assert "again" not in capsys.readouterr().err


def test_a_session_that_cannot_be_used_is_none_that_is_needed(
    llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, path = new_chat(llm), tmp_path / "chat.json"
    speak(chat, "hello", ProgressBars())
    obey(chat, f"/save {path}")
    speak(chat, "more", ProgressBars())
    beside = session_path(path)
    for content in (b"", beside.read_bytes()[:-5], b"\0" + beside.read_bytes()[1:], None):
        if content is None:
            beside.unlink()
        else:
            beside.write_bytes(content)
        other = new_chat(llm)
        obey(other, f"/load {path}")
        assert ("computed again" in capsys.readouterr().err) == (content is not None)
        speak(other, "more", ProgressBars())
        assert last_reply(other)[0] == chat.messages[-1]["content"]
    edited = json.loads(path.read_text())
    edited["messages"][0]["content"] = "hello there"
    obey(chat, f"/save {path}")
    path.write_text(json.dumps(edited))  # by hand: what is read counts
    obey(other, f"/load {path}")
    speak(other, "more", ProgressBars())
    told = llm.chat([*edited["messages"], {"role": "user", "content": "more"}], **GREEDY)  # type: ignore[arg-type]
    assert other.messages[-1]["content"] == told.text


def test_a_file_that_lies_where_the_session_would(llm: LLM, tmp_path: Path) -> None:
    chat, path = new_chat(llm), tmp_path / "model.json"
    speak(chat, "hello", ProgressBars())
    session_path(path).write_bytes(b"weights")
    attend(chat, f"/save {path}", ProgressBars())
    assert not path.exists() and session_path(path).read_bytes() == b"weights"
    chat.confirms = lambda question: True
    attend(chat, f"/save {path}", ProgressBars())
    assert path.exists() and session_path(path).stat().st_size > 1000


def ask(run: Run, model: Path, text: str, *options: object) -> Result:
    result = run("run", model, text, *SHORT, *options)
    assert result.exit_code == 0, result.stderr
    return result


def test_one_question_after_another(run: Run, chat_model: Path, llm: LLM, user_home: Path) -> None:
    session = llm.session([{"role": "system", "content": "be brief"}])
    expected = [session.chat(text, max_tokens=12, temperature=0).text + "\n" for text in ("hello", "more", "again")]
    first = ask(run, chat_model, "hello", "--session", "talk", "--system", "be brief")
    second = ask(run, chat_model, "more", "--session", "talk")
    third = json.loads(ask(run, chat_model, "again", "--session", "talk", "--json").stdout)
    assert [first.stdout, second.stdout, third["text"] + "\n"] == expected
    assert third["reused_tokens"] > 40 and second.stderr == ""
    saved = json.loads(chat_path("talk").read_text())
    assert saved["messages"] == session.messages
    assert ask(run, chat_model, "hello").stdout != second.stdout  # without, nothing is known
    chat = new_chat(llm)
    obey(chat, "/load talk")  # the same chats as those of /save
    assert chat.messages == session.messages


def test_options_of_the_command_go_before_those_that_were_kept(run: Run, chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    ask(run, chat_model, "hello", "--session", path, "--top-k", "5")
    ask(run, chat_model, "more", "--session", path, "-n", "3", "--system", "be long")
    saved = json.loads(path.read_text())
    assert saved["options"] == {"max_tokens": 3, "temperature": 0.0, "top_k": 5}
    assert saved["messages"][0] == {"role": "system", "content": "be long"} and len(saved["messages"]) == 5


def test_sessions_that_cannot_be(run: Run, chat_model: Path, base_model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("[1, 2]")
    (tmp_path / "taken.session.safetensors").write_bytes(b"weights")
    for model, options, text in (
        (base_model, ("--session", "x"), "needs a chat"),
        (chat_model, ("--session", "x", "--raw"), "needs a chat"),
        (base_model, ("--think", "on"), "needs a chat"),
        (chat_model, ("--think", "much"), "think must be one of on, off"),
        (chat_model, ("--session", "../x"), "no slashes"),
        (chat_model, ("--session", ""), "give a name"),
        (chat_model, ("--session", mine), "not a saved chat"),
        (chat_model, ("--session", tmp_path / "taken.json"), "not a saved chat"),
    ):
        result = run("run", model, "hello", *SHORT, *options)
        assert result.exit_code in (1, 2) and text in result.stderr and result.stdout == "", options
    assert mine.read_text() == "[1, 2]"


def test_another_model_goes_on_from_the_text(run: Run, chat_model: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other.gguf", seed=3, name="other")
    ask(run, chat_model, "hello", "--session", "talk")
    result = ask(run, other, "more", "--session", "talk")
    assert "another model" in result.stderr
    messages = json.loads(chat_path("talk").read_text())["messages"]
    with load(other) as llm:
        assert result.stdout == llm.chat(messages[:3], max_tokens=12, temperature=0).text + "\n"
    assert ask(run, other, "again", "--session", "talk").stderr == ""


def talk(model: Path) -> Terminal:
    return Terminal(sys.executable, "-m", "edgerun", "run", str(model), *SHORT, "--session", "talk")


def test_on_a_terminal(chat_model: Path, run: Run) -> None:
    for text, leave in (("hello", "/bye\r"), ("more", "\x04")):
        with talk(chat_model) as terminal:
            terminal.say(text, "as long as it may be")
            terminal.expect(">>>")
            terminal.send(leave)
            assert terminal.process.wait(20) == 0
            assert "edgerun:" not in terminal.rest()
    assert [m["content"] for m in json.loads(chat_path("talk").read_text())["messages"][::2]] == ["hello", "more"]
    assert json.loads(ask(run, chat_model, "again", "--session", "talk", "--json").stdout)["reused_tokens"] > 30


def test_a_signal_keeps_the_text(chat_model: Path, run: Run) -> None:
    ask(run, chat_model, "hello", "--session", "talk")
    with talk(chat_model) as terminal:
        terminal.say("more", "as long as it may be")
        terminal.expect(">>>")
        terminal.process.terminate()
        assert terminal.process.wait(20) == 128 + 15
    assert [m["content"] for m in json.loads(chat_path("talk").read_text())["messages"][::2]] == ["hello", "more"]
    assert ask(run, chat_model, "again", "--session", "talk").stderr == ""


def test_names() -> None:
    for wrong in ("", "a/b", ".x", "a\\b"):
        with pytest.raises(UsageError):
            chat_path(wrong)
    assert session_path(Path("/x/a.b.json")) == Path("/x/a.b.session.safetensors")
