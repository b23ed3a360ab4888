"""Every command on a tiny file of every architecture; and README's and docs' lists of them are the registry."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.instances import INSTANCES, write
from tiny_model import tiny_vocabulary

from cli.conftest import Run
from edgerun.api import weights
from edgerun.cluster.shares import divide
from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import open_gguf
from edgerun.models import FAMILIES, load_spec
from edgerun.planning import MemoryPlan

ROOT = Path(__file__).parents[2]
OF_EACH = {instance.arch: name for name, instance in reversed(INSTANCES.items())}
NEW = 6
MOST = ("-n", NEW, "-c", 64, "--seed", 1, "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def vocabulary() -> dict[str, Any]:
    """Of some 300 tokens, without a chat template: these models continue texts."""
    tokens, merges, types = tiny_vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def streaming(plan: MemoryPlan, used: int, experts: int) -> MemoryPlan:
    """The plan as a cap would make it of a model a thousand times as large."""
    if experts:
        slots = 2 * used + 2
        return replace(plan, mode="experts", slots=slots, slot_bytes=1 << 16, all_experts=experts, wave_tokens=256)
    return replace(plan, mode="layers", pinned=0, layers=3, wave_tokens=256, cache_bytes=1)


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_command(run: Run, arch: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(INSTANCES[OF_EACH[arch]], folder / f"{arch}.gguf", vocabulary())

    def done(*arguments: object) -> dict[str, Any]:
        result = run(*arguments)
        assert result.exit_code == 0, (arguments, result.stderr)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    shown, planned = done("show", model, "--json"), done("plan", model, "--device", "pi-5", "--json")
    assert shown["architecture"] == arch and shown["layers"] and shown["sequence"]
    assert planned["mode"] == "resident" and planned["speed"]["decode_tok_s"] > 0
    assert planned["refused"] == shown["refused"]
    benched = done("bench", model, "-p", 8, "-n", 2, "-r", 1, "--json")
    assert benched["prompt_tok_s"] > 0 and benched["decode_tok_s"] > 0
    said = done("run", model, "the cat", *MOST)
    assert said["completion_tokens"] == NEW or said["finish_reason"] == "stop"

    with open_gguf(model) as gguf:
        spec = load_spec(gguf)
        check_refusals(run, model, shown["refused"])
        if "devices" in shown["refused"]:
            with pytest.raises(UnsupportedError, match=re.escape(shown["refused"]["devices"])):
                divide(spec, spec.tensors, [2, 1])
        else:
            assert len(divide(spec, spec.tensors, [2, 1], in_units="same_tokens" not in shown["refused"])) == 2

    plan_memory = weights.plan_memory
    capped = lambda *given, **more: streaming(plan_memory(*given, **more), spec.n_experts_used, spec.n_experts)  # noqa: E731
    monkeypatch.setattr(weights, "plan_memory", capped)
    assert done("run", model, "the cat", *MOST)["text"] == said["text"]
    done("pack", model, "--json")
    assert done("show", model, "--json")["pack"]["current"]
    assert done("run", model, "the cat", *MOST)["text"] == said["text"]
    monkeypatch.undo()

    done("quantize", model, folder / f"{arch}-Q8_0.gguf", "--type", "Q8_0", "--json")


def check_refusals(run: Run, model: Path, refused: dict[str, str]) -> None:
    """What `show` says is refused is, in these words; and what it says nothing of is not, as far as planning goes."""
    for name, options in (("kv", ("--kv", "q8_0")), ("window", ("--window", 32, "--sinks", 2))):
        command = ("run", model, "the cat", *MOST) if name in refused else ("plan", model, "--device", "pi-5")
        result = run(*command, *options)
        assert result.exit_code == (1 if name in refused else 0), result.stderr
        assert refused.get(name, "") in result.stderr
    if "prompts" in refused:
        result = run("run", model, "the cat", *MOST, "--prefill", "ort-cpu")
        assert result.exit_code == 1 and refused["prompts"] in result.stderr


def test_lists_of_what_runs_are_the_registry() -> None:
    """docs/formats.md has a table of models and their architectures; README names the same models in one row."""
    table = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").partition("## Architectures")[2]
    rows = re.findall(r"^\| (.+) \| (`.+`) \|$", table, re.MULTILINE)[1:]
    assert {name for _, names in rows for name in re.findall("`([^`]+)`", names)} == set(FAMILIES)
    (readme,) = re.findall(
        r"^\| families \| (.+) \(\[all names\]", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert readme == ", ".join(models for models, _ in rows)
