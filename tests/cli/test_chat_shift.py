"""A chat that outgrows its context, as typed: it goes on without its oldest turns, unless --context-shift off."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run
from cli.terminal import Terminal
from edgerun import LLM
from edgerun.cli.chat import Chat
from edgerun.cli.chat_commands import obey
from edgerun.cli.progress import ProgressBars
from edgerun.cli.talk import speak

CONTEXT = 160
FORGETS = "the model forgets its oldest turns"


@pytest.fixture
def small(chat_model: Path) -> Iterator[LLM]:
    """Loaded as the chat loads it."""
    kernels = os.environ.get("EDGERUN_KERNELS", "auto")
    with LLM(chat_model, context=CONTEXT, kernels=kernels, context_shift=True) as llm:
        yield llm


def talk(model: Path, *options: str) -> Terminal:
    command = (sys.executable, "-m", "edgerun", "run", str(model), "-c", str(CONTEXT), "--system", "be brief")
    return Terminal(*command, "-n", "12", "--temperature", "0", *options)


def test_a_chat_on_a_terminal_goes_on(chat_model: Path, tmp_path: Path) -> None:
    with talk(chat_model) as terminal:
        for i in range(9):
            terminal.say(f"message {i}", "as long as it may be")
        terminal.say(f"/save {tmp_path / 'chat.json'}", "saved")
        terminal.expect(">>>")
        terminal.send("/bye\r")
        assert terminal.process.wait(20) == 0
        assert "edgerun: " not in terminal.rest()
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == [f"message {i}" for i in range(9)]
    with LLM(chat_model, context=1000) as llm:  # what came last is what the rest of some length is answered with
        told = [
            llm.chat([messages[0], *messages[start:-1]], max_tokens=12, temperature=0).text
            for start in range(5, len(messages) - 1, 2)
        ]
    assert messages[-1]["content"] in told


def test_it_is_said_once_and_off_refuses(chat_model: Path) -> None:
    with talk(chat_model) as terminal:
        seen = ""
        for i in range(9):
            terminal.say(f"message {i}", "as long as it may be")
            terminal.send("/stats\r")
            seen += terminal.expect("peak memory")
        assert seen.count(FORGETS) == 1
    with talk(chat_model, "--context-shift", "off") as terminal:
        for i in range(4):
            terminal.say(f"message {i}", "as long as it may be")
        terminal.say("message 9", "shorten the prompt")
        assert terminal.process.poll() is None


def test_answers_are_those_of_the_shorter_chat(small: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(small, name="tiny", chats=True, options={"max_tokens": 12, "temperature": 0.0}, system="be brief")
    for i in range(9):
        speak(chat, f"message {i}", ProgressBars())
        prompt = small.engine.encode_chat([chat.messages[0], *chat.messages[1 + chat.left : -1]])
        told = small.session(context_shift=False).complete(prompt, max_tokens=12, temperature=0)
        assert chat.messages[-1]["content"] == told.text
    assert chat.left and capsys.readouterr().err.count(FORGETS) == 1
    obey(chat, "/clear")
    speak(chat, "hello", ProgressBars())
    assert chat.left == 0 and FORGETS not in capsys.readouterr().err


def test_an_answer_goes_on_when_turns_leave_in_its_middle(small: LLM) -> None:
    begun = [{"role": "user", "content": "one " * 10}, {"role": "assistant", "content": "1"}]
    session = small.session(begun)
    done = session.chat("two", temperature=0)
    first = small.engine.encode_chat([*begun, {"role": "user", "content": "two"}])
    second = small.engine.encode_chat("two")
    assert done.finish_reason == "length" and len(second) + len(done.token_ids) == CONTEXT and session.left == 2
    n = CONTEXT - len(first)
    fresh = small.session(context_shift=False)
    assert fresh.complete(first, temperature=0).token_ids == done.token_ids[:n]
    told = small.session(context_shift=False).complete([*second, *done.token_ids[:n]], temperature=0)
    assert told.token_ids == done.token_ids[n:]


def test_stateless_chats_of_a_library(small: LLM) -> None:
    messages = [{"role": "system", "content": "be brief"}]
    texts = []
    for i in range(9):
        messages.append({"role": "user", "content": f"message {i}"})
        done = small.chat(messages, max_tokens=12, temperature=0)
        texts.append(done.text)
        messages.append(done.message)
    session = small.session([messages[0]])
    assert [session.chat(f"message {i}", max_tokens=12, temperature=0).text for i in range(9)] == texts
    assert session.left > 0


def test_one_answer_off_a_terminal(run: Run, chat_model: Path) -> None:
    arguments = ("run", chat_model, "hello", "-c", "60", "--temperature", "0", "--json")
    plain = json.loads(run(*arguments).stdout)
    assert plain["finish_reason"] == "length" and plain["prompt_tokens"] + plain["completion_tokens"] == 60
    for word in ("on", "off"):  # one message and its answer: nothing can leave
        assert json.loads(run(*arguments, "--context-shift", word).stdout)["text"] == plain["text"]
    wrong = run(*arguments, "--context-shift", "maybe")
    assert wrong.exit_code == 2 and "on or off" in wrong.stderr
