from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Run, load
from edgerun import __version__
from edgerun.kernels.choice import fastest
from edgerun.kernels.isa import ISAS

# what ../shared/tools/llamacpp_baseline.py prints
FIELDS = [
    *("engine", "threads", "load_s", "prompt_tokens", "prompt_tok_s", "first_token_s", "decode_tokens"),
    *("decode_tok_s", "decode_p50_ms", "decode_p95_ms", "max_rss_mib", "major_faults", "read_mib"),
]


def test_bench_json(run: Run, chat_model: Path) -> None:
    result = run("bench", chat_model, "-p", "20", "-n", "9", "-t", "1", "-r", "2", "--json")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    report = json.loads(result.stdout)
    assert list(report)[: len(FIELDS)] == FIELDS
    assert report["engine"] == "edgerun" and report["threads"] == 1 and report["repetitions"] == 2
    assert (report["prompt_tokens"], report["decode_tokens"]) == (20, 9)
    assert report["prompt_tok_s"] > 0 and report["decode_tok_s"] > 0 and report["decode_tok_s_sd"] >= 0


def test_bench_logits_are_those_of_the_same_ids(run: Run, chat_model: Path, tmp_path: Path) -> None:
    ids, out = [3, 1, 4, 1, 5, 9, 2, 6], tmp_path / "logits.npy"
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    result = run("bench", chat_model, "-p", "5", "-r", "1", "--ids", tmp_path / "ids.json", "--logits", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["decode_tokens"] == 3
    with load(chat_model) as llm:
        expected = llm.logits(ids)
    got = np.load(out)
    assert got.dtype == np.float32 and got.shape == (4, expected.shape[1])
    np.testing.assert_allclose(got, expected[4:], rtol=1e-3, atol=1e-3)


def test_bench_table(run: Run, chat_model: Path) -> None:
    lines = run("bench", chat_model, "-p", "8", "-n", "6").stdout.splitlines()
    assert lines[0].split() == ["MODEL", "TYPE", "SIZE", "KERNELS", "THREADS", "TEST", "TOKENS/S"]
    assert " pp8 " in lines[1] and " tg6 " in lines[2] and "±" in lines[1]
    assert lines[3].startswith("loaded in ")


@pytest.mark.parametrize(
    ("content", "arguments", "code"),
    [
        (None, ("-p", "0", "-n", "0"), 2),
        ("[1, 2]", ("-p", "5"), 2),
        ("{", (), 1),
        ('["a"]', (), 1),
        ("[1, 99999999]", ("-p", "1"), 2),
    ],
)
def test_bench_of_nonsense(
    run: Run, chat_model: Path, tmp_path: Path, content: str | None, arguments: tuple[str, ...], code: int
) -> None:
    if content is not None:
        (tmp_path / "ids.json").write_text(content)
        arguments = (*arguments, "--ids", str(tmp_path / "ids.json"))
    assert run("bench", chat_model, *arguments).exit_code == code
    assert run("bench", chat_model, "--ids", tmp_path / "absent.json").exit_code == 3


def test_doctor(run: Run) -> None:
    result = run("doctor", "--json", "-t", "1", "--kernels", "auto")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["edgerun"] == __version__
    assert report["kernels"]["threads"] == 1 and report["kernels"]["name"] in ISAS
    measured = report["kernels"]["measured"]
    assert report["kernels"]["name"] == fastest(measured)
    assert measured == json.loads(run("doctor", "--json", "-t", "1").stdout)["kernels"]["measured"], "once a machine"
    assert report["memory"]["total_bytes"] > 0 and report["cpu"]["physical_cores"] >= 1
    assert report["packages"]["numpy"] and set(report["directories"]) == {"cache", "data", "models"}
    text = run("doctor", "--kernels", "reference").stdout
    assert "reference on" in text and "memory" in text
