from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Run, load
from edgerun import __version__
from edgerun.kernels.choice import fastest
from edgerun.kernels.isa import ISAS
from tests.kernels.isas import SOME

# what ../shared/tools/llamacpp_baseline.py prints
FIELDS = [
    *("engine", "threads", "load_s", "prompt_tokens", "prompt_tok_s", "first_token_s", "decode_tokens"),
    *("decode_tok_s", "decode_p50_ms", "decode_p95_ms", "max_rss_mib", "major_faults", "read_mib"),
]


def test_bench_json(run: Run, chat_model: Path) -> None:
    result = run("bench", chat_model, "-p", "20", "-n", "9", "-t", "1", "-r", "2", "--warmup", "--json")
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
    arguments = ("-p", "8,16", "-n", "6", "-pg", "4,2", "-d", "0,8", "-b", "4", "-t", "1-2", "-r", "2")
    lines = run("bench", chat_model, *arguments, "--energy").stdout.splitlines()
    assert lines[0].startswith("| model | size | params | backend | threads | n_batch | test | t/s | ttft")
    names = ["pp8", "pp16", "tg6", "pp4+tg2"]
    names = 2 * [*names, *(f"{name} @ d8" for name in names)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:18]]
    assert [row[6] for row in rows] == names and [row[4] for row in rows] == ["1"] * 8 + ["2"] * 8
    assert all("±" in row[7] for row in rows) and rows[0][8].count("/") == 2 and not rows[0][9]
    said = "\n".join(lines[18:])
    assert "loaded in " in said and "ram peak " in said and "energy: " in said


def test_bench_trace_opens_in_perfetto(run: Run, chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    result = run("bench", chat_model, "-p", "40", "-n", "12", "-t", "2", "-r", "1", "--trace", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert "spans; of " in result.stderr, "none lost"
    trace = json.loads(path.read_text())
    lanes = {}
    for event in trace["traceEvents"]:  # what Chrome's format asks for
        assert event["ph"] in ("M", "X", "i") and isinstance(event["pid"], int)
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                lanes[event["tid"]] = event["args"]["name"]
            continue
        assert event["tid"] in lanes and event["ts"] >= 0 and event["name"] and event["cat"]
        assert event["ph"] != "X" or event["dur"] >= 0
    assert list(lanes.values())[:3] == ["step", "between steps", "compute 1"]
    steps = [event for event in trace["traceEvents"] if event.get("tid") == 0 and event["ph"] == "X"]
    assert [step["name"] for step in steps] == ["prompt"] + 12 * ["token"]
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "compute"]
    assert {"layer 0", "layer 1", "logits"} <= {event.get("args", {}).get("part") for event in kernels}
    for step in steps[2:]:  # replayed: kernels lie within their step, one after another
        inside = sorted(
            (e["ts"], e["ts"] + e["dur"])
            for e in kernels
            if lanes[e["tid"]] == "compute 1" and step["ts"] <= e["ts"] <= step["ts"] + step["dur"]
        )
        assert inside and inside[-1][1] <= step["ts"] + step["dur"] + 1
        assert all(one[1] <= other[0] + 0.01 for one, other in zip(inside, inside[1:], strict=False))
    wall = steps[-1]["ts"] + steps[-1]["dur"] - steps[1]["ts"]
    assert sum(step["dur"] for step in steps[1:]) > 0.5 * wall
    between = sum(e["dur"] for e in trace["traceEvents"] if e.get("cat") == "between steps")
    whole = steps[-1]["ts"] + steps[-1]["dur"] - steps[0]["ts"]
    assert sum(step["dur"] for step in steps) + between == pytest.approx(whole, rel=0.03)
    again = run("bench", chat_model, "-p", "4", "-n", "2", "-r", "1", "--trace", path, "--json")
    assert again.exit_code == 0, "it may write over a trace"
    (tmp_path / "mine.json").write_text("{}")
    assert run("bench", chat_model, "--trace", tmp_path / "mine.json").exit_code == 2


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


def test_doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.planning.kernel_sets.candidates", lambda: SOME)  # those that are compiled anyway
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
