"""pull, list, show, rm, tokenize, convert, quantize."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hub.fake_hub import FakeHub, serve
from models.instances import INSTANCES, write
from tiny_model import CHATML, CONTEXT

from cli.conftest import Program, Run
from edgerun.hub import pull

REPO = "org/tiny-GGUF"


def test_pull_list_show_rm_as_a_user_does(run: Run, program: Program, base_model: Path) -> None:
    with serve(FakeHub({REPO: {"tiny-F32.gguf": base_model.read_bytes()}})) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.endpoint}
        hub.break_after = base_model.stat().st_size // 2
        done = program("pull", f"hf.co/{REPO}:F32", env=env)
        assert done.returncode == 5, done.stderr
        assert done.stdout == "" and "goes on where it stopped" in done.stderr or "refuses" in done.stderr
        hub.down = False
        done = program("pull", f"hf.co/{REPO}:F32", "--json", env=env)
        assert done.returncode == 0, done.stderr
        pulled = json.loads(done.stdout)
        assert Path(pulled["path"]).read_bytes() == base_model.read_bytes()
        assert str(hub.ranges()[-1]).startswith("bytes=")
        assert program("pull", "org/absent", env=env).returncode == 3
    assert program("pull", f"{REPO}:F32", env=env).returncode == 5  # nobody is there any more
    listed = json.loads(run("list", "--json").stdout)["models"]
    assert pulled["name"] in [model["name"] for model in listed]
    assert run("show", pulled["name"]).exit_code == 0
    assert run("rm", pulled["name"]).exit_code == 0
    assert run("show", pulled["name"]).exit_code == 3


@pytest.fixture
def pulled(base_model: Path) -> str:
    with serve(FakeHub({REPO: {"tiny-F32.gguf": base_model.read_bytes()}})) as hub:
        pull(REPO, endpoint=hub.endpoint)
    return f"{REPO}:F32"


def test_list(run: Run, pulled: str) -> None:
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "MODIFIED"]
    assert any(line.startswith(pulled + " ") for line in lines)


def test_aliases(run: Run) -> None:
    assert "qwen3-0.6b" in run("list", "--aliases").stdout
    aliases = json.loads(run("list", "--aliases", "--json").stdout)["aliases"]
    assert {"alias", "repo", "file", "architecture", "summary", "licence"} == set(aliases[0])


def test_rm(run: Run, pulled: str, base_model: Path) -> None:
    assert run("rm", base_model).exit_code == 2
    assert base_model.exists()
    result = run("rm", pulled, "--json")
    assert json.loads(result.stdout)["removed"][0]["name"] == pulled
    assert run("rm", pulled).exit_code == 3


def test_show(run: Run, chat_model: Path, base_model: Path) -> None:
    shown = json.loads(run("show", base_model, "--json").stdout)
    assert (shown["architecture"], shown["quantisation"], shown["context_length"]) == (
        "llama",
        "F32",
        CONTEXT,
    )
    assert shown["chat_template"] is None
    assert shown["sequence"]["position_bytes"] > 0 and shown["sequence"]["state_bytes"] == 0
    text = run("show", chat_model).stdout
    assert "gpt2 (gpt-2)" in text and str(chat_model) in text and "for each token" in text
    recurrent = write(INSTANCES["lfm2"], chat_model.parent / "recurrent.gguf")
    assert "whatever its length" in run("show", recurrent).stdout
    assert run("show", chat_model, "--template").stdout == CHATML + "\n"
    assert run("show", base_model, "--template").exit_code == 3
    metadata = json.loads(run("show", chat_model, "--metadata", "--json").stdout)
    assert metadata["general.architecture"] == "llama"
    assert metadata["tokenizer.ggml.tokens"].endswith(" values]")


def test_tokenize(run: Run, chat_model: Path) -> None:
    given = json.loads(run("tokenize", chat_model, "the cat<|im_end|>", "--json").stdout)
    assert given["tokens"][0] in ("t", "the") and given["tokens"][-1] == "<|im_end|>"
    plain = json.loads(run("tokenize", chat_model, "--no-special", "--json", stdin="the cat<|im_end|>").stdout)
    assert plain["ids"][: len(given["ids"]) - 1] == given["ids"][:-1]
    assert "<|im_end|>" not in plain["tokens"]
    assert len(run("tokenize", chat_model, "the cat").stdout.splitlines()) == len(given["ids"]) - 1


def test_what_became_another_type_is_said_in_few_lines(run: Run, base_model: Path, tmp_path: Path) -> None:
    result = run("quantize", base_model, tmp_path / "q.gguf", "--type", "Q4_K")
    assert result.exit_code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "instead of Q4_K" in line]
    assert 1 <= len(said) <= 4
    assert any(" tensors (" in line and ") are " in line for line in said)


def test_quantize(run: Run, base_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    result = run("quantize", base_model, out, "--type", "Q8_0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert json.loads(run("show", out, "--json").stdout)["quantisation"] == "Q8_0"
    assert run("quantize", base_model, out, "--type", "Q9").exit_code == 2
    assert run("quantize", tmp_path / "absent.gguf", out, "--type", "Q8_0").exit_code == 3


def test_convert(run: Run, shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "data" / "weights"
    out = tmp_path / "stories.gguf"
    result = run("convert", weights / "stories260K.bin", out, "--tokenizer", weights / "tok512.bin", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["path"] == str(out)
    assert json.loads(run("show", out, "--json").stdout)["vocabulary"] == 512
    assert run("convert", tmp_path / "absent.bin", out).exit_code == 3


def test_the_real_model_tells_its_story(run: Run, shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "data" / "weights"
    out = tmp_path / "stories.gguf"
    run("convert", weights / "stories260K.bin", out, "--tokenizer", weights / "tok512.bin")
    result = run("run", out, "-n", "40", "--temperature", "0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
