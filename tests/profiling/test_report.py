"""What a profile says: which of disk, cache, memory and processor binds, on pages that need nothing but themselves."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from tiny_model import make_tiny_model

from edgerun.cli.main import cli
from edgerun.errors import FormatError, NotFoundError, UnsupportedError
from edgerun.profiling.advice import Facts, advise
from edgerun.profiling.plots import draw
from edgerun.profiling.report import compare, differences, load_report
from edgerun.profiling.terminal_plots import terminal_charts

RESIDENT = Facts("resident", 0.01, 0.0, 0.0, 0.0, 0.0, 1e9, 1.0, 0.5, 2, 2, noisy=False)
EXPERTS = Facts("experts", 0.1, 0.7, 1e8, 0.75, 0.95e9, 1e9, 0.4, 0.5, 2, 2, noisy=False, wanted=((3 << 30, 20.0),))


@pytest.mark.parametrize(
    ("facts", "bound", "first"),
    [
        (EXPERTS, "cache", "`--memory 3G`: about 20.0 tokens/s predicted"),
        (replace(EXPERTS, disk_reached=0.3e9), "disk", "edgerun pack"),
        (replace(EXPERTS, disk_reached=0.56e9), "cache", "--memory 3G"),
        (replace(EXPERTS, mode="layers"), "disk", "--memory 3G"),
        (replace(EXPERTS, hit_rate=0.99), "disk", "--memory 3G"),
        (replace(EXPERTS, noisy=True), "cache", "--memory 3G"),
        (replace(EXPERTS, stall_share=0.05), "processor", "edgerun doctor"),
        (RESIDENT, "processor", "edgerun doctor"),
        (replace(RESIDENT, cores=8), "processor", "-t 8: 2 of 8 cores"),
        (replace(RESIDENT, near_limit=0.9), "memory", "smaller quantisation"),
        (replace(RESIDENT, near_limit=0.9, noisy=True), "noise", "close what else runs"),
    ],
)
def test_what_binds_and_what_to_do(facts: Facts, bound: str, first: str) -> None:
    found = advise(facts)
    assert found.bound == bound and first in found.what[0] and found.why


class Page(HTMLParser):
    """Collects what a page asks of others, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.headings: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attributes if name in ("src", "href", "srcset", "action")]
        self._in_heading = tag in ("h1", "h2")

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_profile_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.planning.rates._weight_bytes", lambda cache_bytes: 1 << 20)
    model = make_tiny_model(tmp_path / "tiny.gguf", name='<script>alert("x")</script>')
    page, report, text = (tmp_path / f"out.{kind}" for kind in ("html", "json", "md"))
    outputs = ("-o", page, "-o", report, "-o", text, "--trace", tmp_path / "trace.json")
    result = run("profile", model, "-p", "24", "-n", "9", "-r", "1", "--energy", "estimate:15", *outputs)
    assert result.exit_code == 0, result.stderr
    assert "what next" in result.stdout and "PROMPT" in result.stdout and "DECODE" in result.stdout
    said = json.loads(report.read_text())
    for phase in ("prompt", "decode"):
        assert "estimate" in said[phase]["energy"] and said[phase]["j_per_token"] > 0
        rows = said[phase]["operations"]
        assert {"attention", "products F32"} <= {row["name"] for row in rows}
        assert all(0 <= row["share"] <= 1.2 for row in rows)
        assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.03), "a phase's parts are all of it"
    assert len(said["decode"]["steps"]) == 9 and said["decode"]["tok_s"] > 0
    content = page.read_text()
    parsed = Page()
    parsed.feed(content)
    assert not parsed.links and "<script" not in content and "url(" not in content, "it asks nobody for anything"
    assert any("Roofline" in heading for heading in parsed.headings)
    charts = re.findall(r"<svg.*?</svg>", content)
    assert len(charts) >= 4
    for chart in charts:
        ElementTree.fromstring(chart)
    assert text.read_text().startswith("# ") and "What binds" in text.read_text()
    assert str(tmp_path) not in content + text.read_text(), "no folder of this machine"
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]

    slower = {**said, "decode": {**said["decode"], "tok_s": said["decode"]["tok_s"] / 2}}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(slower))
    result = run("profile", "compare", report, other)
    row = next(line for line in result.stdout.splitlines() if line.startswith("decoded tokens/s"))
    assert result.exit_code == 0 and row.endswith("0.50")
    slower["machine"] = {**said["machine"], "threads": 99}
    assert not any(
        "memory" in text for text in differences(said, {**said, "memory": {**said["memory"], "budget_bytes": 1}})
    )
    assert any("different threads" in text for text in differences(said, slower))
    assert not [text for text in differences(said, said) if "different" in text]
    assert ("decoded tokens/s", f"{said['decode']['tok_s']:.1f}") == compare(said, said)[2][:2]


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"name": "products Q4_0", "seconds": 0.01, "share_of_limit": 0.5, "intensity": 3.5, "flops": 2e9}]
    step = {"seconds": 0.01, "read_bytes": 1e6, "stall_s": 0.0, "hit_rate": 0.5}
    phase = {"operations": rows, "steps": [step] * 5, "layers": [("layer 0", 0.001), ("logits", 0.002)]}
    report = {"machine": {"bandwidth_gb_s": 25.0, "peak_gop_s": 300.0}, "prompt": phase, "decode": phase}
    for module, use in (
        ("matplotlib.figure", lambda: draw(report, "png")),
        ("plotext", lambda: terminal_charts(report)),
    ):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, module, None)
            with pytest.raises(UnsupportedError, match="pip install"):
                use()
    if find_spec("matplotlib") is not None:
        assert draw(report, "png").startswith(b"\x89PNG") and b"<svg" in draw(report, "svg")
    if find_spec("plotext") is not None:
        text = terminal_charts(report)
        assert text.count("roofline") == 2 and "MB read a token" in text and "products Q4_0" in text


def test_nothing_is_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<html>my page</html>")
    assert run("profile", "-o", mine).exit_code == 2 and mine.read_text() == "<html>my page</html>"
    assert run("profile", "-o", tmp_path / "x.pdf").exit_code == 2
    assert run("profile", "--device", "model.gguf").exit_code == 2
    assert run("profile", "a.gguf", "b.gguf").exit_code == 2
    assert run("profile", "-n", "5").exit_code == 2
    assert run("profile", "compare", mine).exit_code == 2


def test_missing_packages_are_told_before_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.cli.profile.find_spec", lambda name: None)
    for asked, package in (("--plot", "plotext"), (f"-o{tmp_path / 'x.png'}", "matplotlib")):
        result = run("profile", "no-such.gguf", asked)
        assert result.exit_code != 0 and f"charts need {package}" in result.stderr


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"format": "edgerun profile 1"}',
        "[" * 100_000,
        '{"format": "edgerun profile 9"}',
    ):
        path.write_text(content)
        with pytest.raises(FormatError):
            load_report(path)
    with pytest.raises(FormatError, match="another version, 'edgerun profile 9', and this edgerun reads"):
        load_report(path)
    with pytest.raises(NotFoundError):
        load_report(tmp_path / "none.json")


def test_profiles_that_somebody_else_wrote_can_be_compared(tmp_path: Path) -> None:
    """What is missing is left out, what is no figure too, and nothing in a file reaches the terminal as it is."""
    empty = {key: {} for key in ("model", "prompt", "decode", "memory", "machine", "advice")}
    odd = {
        **empty,
        "noise": [1],
        "prompt": {"tok_s": 10**400},
        "decode": {"tok_s": float("nan"), "p95_ms": "x"},
        "machine": {"processor": "\x1b[31mred\n" * 1000},
    }
    for name, said in (("a", empty), ("b", odd)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": "edgerun profile 1", **said}))
    result = run("profile", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout and "different machines: nothing and \\x1b[31mred" in result.stdout
    assert len(result.stdout) < 2000 and "nan" not in result.stdout


def test_plan_for_another_device(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny.gguf")
    result = run("plan", model, "--device", "pi-5", "-p", "64", "-n", "32", "-c", "256")
    assert result.exit_code == 0, result.stderr
    assert (
        "Raspberry Pi 5" in result.stdout and "published figures" in result.stdout and "64 + 32 tokens" in result.stdout
    )
    said = json.loads(run("plan", model, "--device", "pi-5", "-c", "256", "--json").stdout)
    assert (
        said["request"]["decode_bound"] == "memory" and said["rates"]["products"]["F32"]["prompt_ops_per_s"] == 7.2e10
    )
    assert run("plan", model, "--device", "no-such").exit_code == 3
    assert run("plan", model, "--device", "this").exit_code == 3
