"""Models larger than the memory they are given, as a user runs them: same numbers, within the limit, or a refusal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.instances import INSTANCES, write

from cli.conftest import Program, Run
from edgerun.formats.gguf import GgmlType, GgufWriter

MIB = 1 << 20
LAYERS, D, FF, VOCAB = 8, 512, 512, 640


def big_model(path: Path, *, experts: int) -> Path:
    """A model of 150 MiB and more with random Q4_0 weights: a mixture (olmoe) or dense (llama)."""
    rng = np.random.default_rng(5)
    arch, layers, ff = ("olmoe", LAYERS, FF) if experts else ("llama", 40, 4096)
    with GgufWriter(path, arch) as w:
        for key, value in {
            "block_count": layers, "context_length": 256, "embedding_length": D, "feed_forward_length": ff,
            "attention.head_count": 8, "attention.head_count_kv": 8, "attention.layer_norm_rms_epsilon": 1e-5,
        }.items():  # fmt: skip
            w.add(f"{arch}.{key}", value)
        if experts:
            w.add(f"{arch}.expert_count", experts)
            w.add(f"{arch}.expert_used_count", 4)

        def matrix(name: str, *shape: int) -> None:
            blocks = rng.integers(0, 256, (int(np.prod(shape)) // 32, 18), dtype=np.uint8)
            blocks[:, :2] = np.frombuffer(np.float16(0.3 / shape[-1] ** 0.5).tobytes(), np.uint8)
            w.add_tensor(name, blocks.reshape(*shape[:-1], -1), GgmlType.Q4_0, shape)

        def ones(name: str, n: int) -> None:
            w.add_tensor(name, np.ones(n, np.float32), GgmlType.F32)

        matrix("token_embd.weight", VOCAB, D)
        matrix("output.weight", VOCAB, D)
        ones("output_norm.weight", D)
        for layer in range(layers):
            b = f"blk.{layer}."
            ones(b + "attn_norm.weight", D)
            ones(b + "ffn_norm.weight", D)
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                matrix(f"{b}{part}.weight", D, D)
            if experts:
                ones(b + "attn_q_norm.weight", D)
                ones(b + "attn_k_norm.weight", D)
                router = rng.standard_normal((experts, D)).astype(np.float32) * np.float32(D**-0.5)
                w.add_tensor(b + "ffn_gate_inp.weight", router, GgmlType.F32)
            kind = "_exps" if experts else ""
            front = (experts,) if experts else ()
            matrix(f"{b}ffn_gate{kind}.weight", *front, ff, D)
            matrix(f"{b}ffn_up{kind}.weight", *front, ff, D)
            matrix(f"{b}ffn_down{kind}.weight", *front, D, ff)
    return path


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_model(tmp_path_factory.mktemp("big") / "mixture.gguf", experts=48)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_model(tmp_path_factory.mktemp("big") / "dense.gguf", experts=0)


def floor_mib(program: Program, path: Path) -> int:
    """The smallest memory that a refusal names, in MiB."""
    refused = program("bench", path, "-p", 40, "-n", 12, "-r", 1, "--memory", "60M", "-c", 64)
    assert refused.returncode == 4
    named = re.search(r"at least ([\d.]+) MiB", refused.stderr)
    assert named is not None, refused.stderr
    return int(float(named[1])) + 1


def sparse_model(path: Path) -> Path:
    """150 MiB and more, most of it neurons in Q4_K with random codes; about half of them fire."""
    rng = np.random.default_rng(6)
    layers, ff = 24, 8192
    with GgufWriter(path, "llama") as w:
        for key, value in {
            "block_count": layers, "context_length": 256, "embedding_length": D, "feed_forward_length": ff,
            "attention.head_count": 8, "attention.head_count_kv": 8, "attention.layer_norm_rms_epsilon": 1e-5,
            "hidden_activation": "relu",
        }.items():  # fmt: skip
            w.add(f"llama.{key}", value)

        def matrix(name: str, rows: int) -> None:
            blocks = rng.integers(0, 256, (rows * D // 256, 144), dtype=np.uint8)
            blocks[:, :4] = np.array([1e-3, 7.5e-3], np.float16).view(np.uint8)  # scales and minima in balance
            w.add_tensor(name, blocks.reshape(rows, -1), GgmlType.Q4_K, (rows, D))

        matrix("token_embd.weight", VOCAB)
        w.add_tensor("output_norm.weight", np.ones(D, np.float32), GgmlType.F32)
        for layer in range(layers):
            for part in ("attn_norm", "ffn_norm"):
                w.add_tensor(f"blk.{layer}.{part}.weight", np.full(D, 0.3, np.float32), GgmlType.F32)
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                matrix(f"blk.{layer}.{part}.weight", D)
            for part in ("ffn_gate", "ffn_up", "ffn_down_t"):
                matrix(f"blk.{layer}.{part}.weight", ff)
    return path


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_model(tmp_path_factory.mktemp("big") / "sparse.gguf")


@pytest.mark.parametrize("which", ["mixture", "dense", "sparse"])
def test_the_same_logits_in_less_memory(
    program: Program, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    reports: list[dict[str, Any]] = []

    def run(name: str, memory: str) -> None:
        arguments = ("-p", 40, "-n", 12, "-r", 1, "-c", 64, "--memory", memory, "--json")
        done = program("bench", path, *arguments, "--logits", tmp_path / f"{name}.npy")
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))

    run("whole", "auto")
    least = floor_mib(program, path)  # afterwards: as long as kernels must be compiled it is higher
    run("some", f"{least + 20}M")
    run("least", f"{least + 4}M")
    whole, *capped = reports
    assert whole["memory"]["mode"] == "resident"
    for report in capped:
        assert report["memory"]["mode"] == ("experts" if which == "mixture" else "layers")
        assert report["max_rss_mib"] * MIB <= report["memory"]["budget_bytes"], "within what it was given"
        assert sum(report["memory"]["accounts_bytes"].values()) <= report["memory"]["budget_bytes"]
        assert report["max_rss_mib"] < whole["max_rss_mib"] - 50
        assert 0 <= report["hit_rate"] <= 1
    expected = np.load(tmp_path / "whole.npy")
    assert np.abs(expected).max() > 0.1
    for name in ("some", "least"):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected), "bit for bit"


def plan_limit(program: Program, path: Path, more_mib: int) -> str:
    """So much more than the floor that a plan names. (In processes of their own: this one's size changes.)"""
    floor: int = json.loads(program("plan", path, "-c", 64, "--json").stdout)["memory"]["floor_bytes"]
    return f"{floor // MIB + more_mib}M"


def test_routing_is_recorded_and_replayed_in_a_plan(
    run: Run, program: Program, mixture: Path, dense: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "routing.json"
    done = program("bench", mixture, "-p", 10, "-n", 20, "-r", 1, "--record-routing", trace, "--json")
    assert done.returncode == 0, done.stderr
    routing = json.loads(trace.read_text())
    assert np.array(routing).shape == (30, LAYERS, 4)
    plan = ("plan", mixture, "-c", 64, "--memory", plan_limit(program, mixture, 40), "--json")
    expected = json.loads(program(*plan).stdout)
    assert expected["mode"] == "experts"
    assert 0 < expected["speed"]["hit_rate"] < 1
    assert expected["assumed_routing"] == "OLMoE"
    cycle = [[[(4 * token + i) % 48 for i in range(4)]] * LAYERS for token in range(30)]  # the worst for any cache
    trace.write_text(json.dumps(cycle))
    replayed = json.loads(program(*plan, "--routing", trace).stdout)
    assert replayed["speed"]["hit_rate"] < expected["speed"]["hit_rate"]
    assert not replayed["assumed_routing"]
    assert run("bench", dense, "-p", 4, "-n", 0, "--record-routing", trace).exit_code == 2
    for wrong in ("[", "[]", '[[["a"]]]', json.dumps([routing[0], routing[0][1:]])):
        trace.write_text(wrong)
        assert run(*plan, "--routing", trace).exit_code == 1
    trace.write_text(json.dumps([[[0]]]))
    assert program(*plan, "--routing", trace).returncode == 2


def test_routing_of_a_model_that_begins_with_a_dense_layer(run: Run, tmp_path: Path) -> None:
    model, trace = write(INSTANCES["deepseek2"], tmp_path / "model.gguf"), tmp_path / "routing.json"
    bench = ("bench", model, "-p", 3, "-n", 2, "-r", 1, "--json", "--kernels", "reference")
    done = run(*bench, "--record-routing", trace)
    assert done.exit_code == 0, done.stderr
    routing = json.loads(trace.read_text())
    assert len(routing) == 5 and all(first == [] and second for first, second in routing)
    assert run("plan", model, "--routing", trace, "--kernels", "reference").exit_code == 0


def test_plan_says_what_is_kept_where(run: Run, program: Program, dense: Path, mixture: Path) -> None:
    whole = run("plan", dense)
    assert whole.exit_code == 0, whole.stderr
    assert "all in memory" in whole.stdout and "tokens/s" in whole.stdout
    plan = ("plan", mixture, "-c", 64, "--memory", plan_limit(program, mixture, 30))
    shown = program(*plan)
    assert re.search(r"\d+ of 384 experts cached", shown.stdout)
    assert "expected hits" in shown.stdout
    report = json.loads(program(*plan, "--json").stdout)
    assert sum(report["accounts_bytes"].values()) <= report["memory"]["budget_bytes"]
    assert ("from what earlier runs kept" if report["is_warm"] else "from an empty cache") in shown.stdout
    assert program("bench", *plan[1:], "-p", 0, "-n", 2, "-r", 1, "--json").returncode == 0
    assert json.loads(program(*plan, "--json").stdout)["is_warm"], "what was hot is kept"
    refused = run("plan", mixture, "--memory", "64M")
    assert (refused.exit_code, refused.stdout) == (4, "")
    assert "at least" in refused.stderr
    assert run("plan", mixture, "--memory", "plenty").exit_code == 2


def test_packed_and_then_streamed_from_the_pack(run: Run, program: Program, mixture: Path, tmp_path: Path) -> None:
    logits = []
    limits = ("-p", 8, "-n", 6, "-r", 1, "-c", 64, "--memory", f"{floor_mib(program, mixture) + 8}M", "--json")
    for name in ("raw", "packed"):
        done = program("bench", mixture, *limits, "--logits", tmp_path / f"{name}.npy")
        assert done.returncode == 0, done.stderr
        logits.append(np.load(tmp_path / f"{name}.npy"))
        if name == "raw":
            packed = run("pack", mixture, "--json")
            assert packed.exit_code == 0, packed.stderr
            said = json.loads(packed.stdout)
            assert (said["kind"], Path(said["path"]).stat().st_size) == ("experts", said["n_bytes"])
    assert np.array_equal(*logits)
    assert "384 experts" in run("pack", mixture).stdout, "verified again"
    shown = json.loads(run("show", mixture, "--json").stdout)["pack"]
    assert (shown["digest"], shown["current"]) == (said["digest"], True)
    before = mixture.stat()
    os.utime(mixture, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert "was copied or changed since" in run("show", mixture).stdout
    with Path(said["path"]).open("r+b") as file:
        file.seek(said["n_bytes"] - 4096 * 5)
        file.write(b"\x55\xaa" * 100)
    damaged = run("pack", mixture, "--verify")
    assert damaged.exit_code == 1 and "is damaged" in damaged.stderr
    os.utime(mixture, ns=(before.st_atime_ns, before.st_mtime_ns))
    Path(said["path"]).unlink()
    assert run("pack", mixture, "--verify").exit_code == 3
    assert run("pack", mixture.parent / "none.gguf").exit_code == 3


def test_a_reply_says_how_it_was_streamed(program: Program, mixture: Path) -> None:
    least = floor_mib(program, mixture)
    done = program("bench", mixture, "-p", 8, "-n", 6, "-r", 1, "-c", 64, "--memory", f"{least + 8}M", "--no-prefetch")
    assert done.returncode == 0, done.stderr
    assert re.search(r"streamed: cache hits \d+ %, [\d.]+ MB/token, stalled [\d.]+ ms/token", done.stdout)
