"""Sessions that survive a restart, with a real file, real kernels and another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_model import make_tiny_model

from edgerun import LLM, Session, engine
from edgerun.errors import UnsupportedError, UsageError
from edgerun.events import Event, Notice

KERNELS = os.environ.get("EDGERUN_KERNELS", "auto")
OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "logprobs": 3}

AFTER_RESTART = """
import json, sys
from edgerun import LLM
model, saved, options, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
said = []
with LLM(model, events=lambda event: said.append(getattr(event, "text", "")), **options) as llm:
    session = llm.load_session(saved)
    done = session.chat("and then?", **asked)
    found = {"reused": done.usage.reused_tokens, "text": done.text, "logprobs": [t.logprob for t in done.logprobs]}
    print(json.dumps({**found, "said": [text for text in said if "session" in text]}))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", context=4096, head_dim=32)


def chatted(llm: LLM) -> Session:
    session = llm.session([{"role": "system", "content": "be brief " * 40}])
    session.chat("hello " * 50, **OPTIONS)
    session.chat("more", **OPTIONS)
    return session


def restarted(model: Path, saved: Path, **options: Any) -> dict[str, Any]:
    arguments = [str(model), str(saved), json.dumps({"kernels": KERNELS, **options}), json.dumps(OPTIONS)]
    done = subprocess.run(
        [sys.executable, "-c", AFTER_RESTART, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
def test_after_a_restart_the_same_bits(path: Path, tmp_path: Path, kv: str) -> None:
    saved = tmp_path / "chat.safetensors"
    with LLM(path, kernels=KERNELS, kv=kv) as llm:
        session = chatted(llm)
        session.save(saved)
        held, done = session.cached_tokens, session.chat("and then?", **OPTIONS)
    found = restarted(path, saved, kv=kv)
    assert found["said"] == [] and found["reused"] == done.usage.reused_tokens > held - 40
    assert done.logprobs is not None
    assert found["logprobs"] == [token.logprob for token in done.logprobs]
    assert found["text"] == done.text


@pytest.mark.parametrize("late", [False, True])
def test_the_model_is_closed_while_it_is_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Before it is known which model it is, that is an error; once keys and values were taken, the file is whole."""
    saved = tmp_path / "chat.safetensors"
    llm = LLM(path, kernels=KERNELS)
    session = chatted(llm)
    where, name = (engine.saved, "tensor_file") if late else (engine.session, "write_session")
    act = getattr(where, name)

    def closing(*given: Any) -> Any:
        llm.close()
        return act(*given)

    monkeypatch.setattr(where, name, closing)
    if not late:
        with pytest.raises(UsageError, match="the model was closed"):
            session.save(saved)
        assert not saved.exists()
        return
    session.save(saved)
    with LLM(path, kernels=KERNELS) as again:
        assert again.load_session(saved).cached_tokens > 256


def test_kept_otherwise_or_computed_by_others_it_is_computed_again(path: Path, tmp_path: Path) -> None:
    saved, copied = tmp_path / "chat.safetensors", tmp_path / "copy.gguf"
    copied.write_bytes(path.read_bytes())
    other = make_tiny_model(tmp_path / "other.gguf", context=4096, head_dim=32, seed=1, name="other")
    with LLM(path, kernels=KERNELS) as llm:
        session = chatted(llm)
        session.save(saved)
        done = session.chat("and then?", **OPTIONS)
    for model, options, reason in (
        (path, {"kv": "q8_0"}, "--kv"),
        (path, {"kernels": "reference"}, "other kernels"),
        (copied, {}, "the model's file"),
        (other, {}, "another model"),
    ):
        if options.get("kernels") == KERNELS:
            continue
        found = restarted(model, saved, **options)
        assert len(found["said"]) == 1 and reason in found["said"][0]
        assert found["reused"] == 0
        if model == copied:
            assert found["text"] == done.text


def test_a_text_of_another_model_is_refused(path: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other.gguf", context=4096, head_dim=32, seed=1, name="other")
    with LLM(path, kernels=KERNELS) as llm:
        session = llm.session()
        session.complete("the in", **OPTIONS)
        session.save(tmp_path / "text.safetensors")
    with LLM(other, kernels=KERNELS) as llm, pytest.raises(UnsupportedError, match="another model"):
        llm.load_session(tmp_path / "text.safetensors")


def test_a_session_of_2000_tokens_is_there_in_half_a_second(path: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with LLM(path, kernels=KERNELS, events=events.append) as llm:
        session = llm.session()
        session.complete([5 + i % 200 for i in range(2000)], temperature=0, max_tokens=3)
        session.save(tmp_path / "long.safetensors")
    with LLM(path, kernels=KERNELS, events=events.append) as llm:
        llm.complete("the in", max_tokens=1)
        began = time.perf_counter()
        loaded = llm.load_session(tmp_path / "long.safetensors")
        done = loaded.complete("", temperature=0, max_tokens=1)
        took_s = time.perf_counter() - began
        assert done.usage.reused_tokens == 2002 and took_s < 0.5
        assert done.token_ids == session_goes_on(llm, loaded.ids[:2003])
    assert not [event for event in events if isinstance(event, Notice) and "session" in event.text]


def session_goes_on(llm: LLM, ids: tuple[int, ...]) -> tuple[int, ...]:
    return llm.complete(list(ids), temperature=0, max_tokens=1).token_ids
