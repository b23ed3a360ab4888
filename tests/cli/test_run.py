"""run off a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from cli.conftest import Program, Run, load

SHORT = ("-n", "12", "--temperature", "0")


def test_a_chat_model_answers_once(run: Run, chat_model: Path) -> None:
    result = run("run", chat_model, "hello", "--system", "be brief", *SHORT)
    with load(chat_model) as llm:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        expected = llm.chat(messages, max_tokens=12, temperature=0).text
    assert (result.exit_code, result.stdout) == (0, expected + "\n")


def test_a_base_model_continues(run: Run, base_model: Path) -> None:
    result = run("run", base_model, "the in", *SHORT)
    with load(base_model) as llm:
        expected = llm.complete("the in", max_tokens=12, temperature=0).text
        bos = llm.engine.tokenizer.bos_id
        begun = llm.complete([bos], max_tokens=12, temperature=0).text
    assert (result.exit_code, result.stdout) == (0, expected + "\n")
    assert run("run", base_model, *SHORT).stdout == begun + "\n"


def test_raw_leaves_the_chat_format_out(run: Run, chat_model: Path) -> None:
    result = run("run", chat_model, "the in", "--raw", *SHORT)
    with load(chat_model) as llm:
        assert result.stdout == llm.complete("the in", max_tokens=12, temperature=0).text + "\n"


def test_stdin_is_appended_to_the_prompt(run: Run, chat_model: Path) -> None:
    piped = run("run", chat_model, "say", *SHORT, stdin="hello\n")
    whole = run("run", chat_model, "say\n\nhello", *SHORT)
    assert piped.exit_code == 0
    assert piped.stdout == whole.stdout
    assert run("run", chat_model, *SHORT, stdin="say\n\nhello").stdout == whole.stdout


def test_a_dash_waits_for_stdin(run: Run, chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), "-", *SHORT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        assert process.poll() is None
        out, _ = process.communicate("hello\n", timeout=60)
    assert process.returncode == 0
    assert out == run("run", chat_model, *SHORT, stdin="hello").stdout


def test_text_that_is_not_utf8(chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), *SHORT]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, timeout=60)
    assert done.returncode == 2 and b"UTF-8" in done.stderr and done.stdout == b""
    done = subprocess.run([*command, b"\xff"], capture_output=True, timeout=60)
    assert done.returncode == 2 and b"UTF-8" in done.stderr


def test_json_and_stats(run: Run, chat_model: Path) -> None:
    result = run("run", chat_model, "hello", *SHORT, "--seed", "7", "--json", "--stats")
    report = json.loads(result.stdout)
    assert report["completion_tokens"] == 12 and report["finish_reason"] == "length" and report["seed"] == 7
    assert report["prompt_tokens"] > 0 and report["prompt_tok_s"] > 0
    assert "tokens/s" in result.stderr


def test_trace(run: Run, chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    answer = run("run", chat_model, "hello", "-n", "4", "--seed", "1")
    traced = run("run", chat_model, "hello", "-n", "4", "--seed", "1", "--trace", path)
    assert traced.exit_code == 0 and traced.stdout == answer.stdout and str(path) in traced.stderr
    events = json.loads(path.read_text())["traceEvents"]
    steps = [event["name"] for event in events if event.get("cat") == "step"]
    assert steps[0] == "prompt" and steps[1:] and set(steps[1:]) == {"token"}
    assert {"compute", "between steps"} <= {event.get("cat") for event in events}
    (tmp_path / "mine.json").write_text("{}")
    assert run("run", chat_model, "hello", "--trace", tmp_path / "mine.json").exit_code == 2


def test_the_seed_decides(run: Run, chat_model: Path) -> None:
    texts = [run("run", chat_model, "hello", "-n", "30", "--seed", seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stop(run: Run, chat_model: Path) -> None:
    text = run("run", chat_model, "hello", *SHORT).stdout.rstrip("\n")
    stopped = run("run", chat_model, "hello", *SHORT, "--stop", text[5:8]).stdout.rstrip("\n")
    assert stopped == text[: text.index(text[5:8])]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "nothing to answer"),
        (("hi", "--raw", "--system", "x"), 2, "--raw"),
        (("hi", "-c", "8"), 4, "context"),
        (("hi", "-c", "900000"), 2, "context"),
        (("hi", "--kernels", "nonsense"), 2, "nonsense"),
    ],
)
def test_what_makes_no_sense(run: Run, chat_model: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    result = run("run", chat_model, *arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == "" and text in result.stderr


def test_a_system_message_needs_a_template(run: Run, base_model: Path) -> None:
    result = run("run", base_model, "hi", "--system", "x")
    assert result.exit_code == 2 and "template" in result.stderr


def test_files_that_are_no_models(run: Run, tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model at all")
    assert run("run", junk, "hi").exit_code == 1
    assert run("run", tmp_path / "absent.gguf", "hi").exit_code == 3


def test_kernels_come_from_the_environment(chat_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGERUN_KERNELS", "reference")
    done = run("bench", chat_model, "-p", "4", "-n", "3", "-r", "1", "--json")
    assert json.loads(done.stdout)["kernels"] == "reference", done.stderr


def test_the_text_alone_is_on_stdout(program: Program, chat_model: Path) -> None:
    done = program("run", chat_model, *SHORT, "--stats", stdin="hello")
    assert done.returncode == 0, done.stderr
    with load(chat_model) as llm:
        assert done.stdout == llm.chat("hello", max_tokens=12, temperature=0).text + "\n"


def test_ctrl_c_ends_with_130_and_keeps_what_came(chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), "hello", "-c", "100000"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert process.stderr.read().decode().splitlines()[-1] == "edgerun: interrupted"
            assert process.stdout.read().endswith(b"\n")
        finally:
            process.kill()


def test_an_open_stdin_does_not_hang(chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), "hello", *SHORT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.wait(60) == 0
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read().strip() and "nothing came on stdin" in process.stderr.read()
        finally:
            process.kill()


def test_a_prompt_alone_goes_to_the_packaged_model(
    run: Run, base_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "d.yaml").write_text("alias: default\nfile: default.gguf\nsummary: s\nlicence: l\n")
    make_tiny_model(cards / "default.gguf", chat=False)
    monkeypatch.setattr("edgerun.hub.cards.cards_dir", lambda: cards)
    expected = run("run", base_model, "the in", *SHORT).stdout
    assert run("run", "the in", *SHORT).stdout == expected
    assert run("run", *SHORT).stdout == run("run", base_model, *SHORT).stdout
    assert json.loads(run("list", "--json").stdout)["models"][0]["name"] == "default"


def test_asked_nothing_the_embedded_model_tells_a_story_and_not_the_request(run: Run) -> None:
    for seed in range(1, 4):
        result = run("run", "-n", "12", "--seed", seed)
        assert result.exit_code == 0, result.stderr
        assert len(result.stdout.split()) > 5
        assert not result.stdout.startswith(("user", "Tell me", "assistant"))


def test_text_that_no_context_holds_is_refused_without_reading_all_of_it(run: Run, chat_model: Path) -> None:
    done = run("run", chat_model, *SHORT, stdin="x" * (4 << 20))
    assert done.exit_code == 4
    assert "the prompt has at least" in done.stderr and "Traceback" not in done.stderr


def test_stdin_without_end(chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), *SHORT]
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(command, stdin=endless, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "stdin holds more than 32 MiB" in done.stderr
