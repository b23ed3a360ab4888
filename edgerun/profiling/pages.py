"""A profile as a page: HTML that needs nothing but itself, or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from edgerun.profiling.report import Report, headline, operations, tiers
from edgerun.profiling.svg import bars, line, roofline

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --back: #fbfaf7; --card: #fff; --edge: #e3dfd6;
  --main: #2b6cb0; --warm: #c05621; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --back: #14181f; --card: #1b212b;
  --edge: #2c3542; --main: #63a4e8; --warm: #ed8936; } }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 10px; }
p { margin: 4px 0; } .soft { color: var(--soft); } h1, p, li, .pairs td { overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px;
  margin-top: 16px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 16px 18px; min-width: 0;
  overflow-x: auto; }
.wide { grid-column: 1 / -1; } .advice { border-left: 5px solid var(--warm); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--edge); vertical-align: top; }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; } tr > th:first-child { min-width: 7em; }
ol { margin: 6px 0 0 18px; padding: 0; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--ink); }
.bar, .dot { fill: var(--main); } .line, .roof { fill: none; stroke: var(--main); stroke-width: 2; }
.roof { stroke: var(--warm); } .axis { fill: none; stroke: var(--soft); } code { word-break: break-all; }
@media (max-width: 520px) { main { padding: 18px 10px 40px; } .card { padding: 12px; } svg { min-width: 460px; }
  th, td { padding-right: 6px; } }
"""


def html_page(report: Report) -> str:
    """Self-contained: styles and charts are in it, and it asks no network for anything."""
    machine, advice = report["machine"], report["advice"]
    title = f"{report['model']['name']} on {machine['processor']}"
    cards = [
        _card("What was measured", _pairs(headline(report)), "wide"),
        _card(
            f"What binds: {advice['bound']}", f"<p>{_code(advice['why'])}</p>" + _list(advice["what"]), "wide advice"
        ),
        *[_card(_PHASES[phase], _operations(report, phase)) for phase in ("prompt", "decode")],
        *[_card(f"Roofline, {phase}", _roofline(report, phase)) for phase in ("prompt", "decode")],
        _card("Memory and bytes", _pairs(tiers(report))),
        _card(
            "Milliseconds of a token",
            line([1e3 * each["seconds"] for each in report["decode"]["steps"]], "ms", low=0.0),
        ),
    ]
    layers = report["decode"]["layers"]
    if layers:
        cards.append(_card("A token's thread time by layer", bars([(str(name), 1e3 * s) for name, s in layers], "ms")))
    steps = report["decode"]["steps"]
    if any(each["read_bytes"] for each in steps):
        cards.append(_card("Megabytes read a token", line([each["read_bytes"] / 1e6 for each in steps], "MB", low=0.0)))
        hits = [each["hit_rate"] for each in steps if each["hit_rate"] is not None]
        cards.append(_card("Cache hits a token", line(hits, "share", low=0.0)))
    cards += [
        _card("Lanes while decoding, of the tokens' time", _lanes(report)),
        _card("Machine and method", _pairs(_method(report)), "wide"),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f'<main><h1>{escape(title)}</h1><p class="soft">{escape(str(report["command"]))} · '
        f"{escape(str(report['time']))}</p>"
        f'<div class="grid">{"".join(cards)}</div></main></html>\n'
    )


_PHASES = {"prompt": "Prompt: where the time goes", "decode": "Decode: where a token's time goes"}
_COLUMNS = ("operation", "ms", "share", "of its limit", "bound by")


def markdown_page(report: Report) -> str:
    """The same without charts."""
    advice, machine = report["advice"], report["machine"]
    parts = [f"# {report['model']['name']} on {machine['processor']}", f"`{report['command']}`, {report['time']}"]
    parts += [_md_table(("", ""), headline(report)), f"## What binds: {advice['bound']}", str(advice["why"])]
    parts.append("\n".join(f"{number}. {text}" for number, text in enumerate(advice["what"], 1)))
    for phase in ("prompt", "decode"):
        parts += [f"## {_PHASES[phase]}", _md_table(_COLUMNS, operations(report, phase))]
    parts += ["## Memory and bytes", _md_table(("", ""), tiers(report))]
    parts += ["## Machine and method", _md_table(("", ""), _method(report))]
    return "\n\n".join(parts) + "\n"


def _method(report: Report) -> list[tuple[str, str]]:
    machine = report["machine"]
    return [
        (
            "processor",
            f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, {machine['kernels']}",
        ),
        (
            "memory",
            f"{machine['bandwidth_gb_s']:.1f} GB/s, products up to {machine['peak_gop_s']:.0f} GOP/s, measured here",
        ),
        ("disk", f"{machine['disk_gb_s']:.2f} GB/s of random reads"),
        ("versions", f"edgerun {machine['edgerun']}, Python {machine['python']}, numpy {machine['numpy']}"),
        ("noise", str(report["noise"]["text"])),
        ("energy", str(report["energy_method"])),
        ("method", str(report["method"])),
        ("command", str(report["command"])),
    ]


def _card(title: str, content: str, kind: str = "") -> str:
    return f'<section class="card {kind}"><h2>{escape(title)}</h2>{content}</section>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="pairs">{cells}</table>'


def _list(items: Sequence[str]) -> str:
    return "<ol>" + "".join(f"<li>{_code(each)}</li>" for each in items) + "</ol>"


def _code(text: str) -> str:
    """What stands between backticks, as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _operations(report: Report, phase: str) -> str:
    head = "".join(f"<th{_numeric(name)}>{escape(name)}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_numeric(name)}>{escape(cell)}</td>" for name, cell in zip(_COLUMNS, row, strict=True))
        + "</tr>"
        for row in operations(report, phase)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _numeric(name: str) -> str:
    return ' class="n"' if name in ("ms", "share", "of its limit") else ""


def _roofline(report: Report, phase: str) -> str:
    machine = report["machine"]
    points = [
        (str(each["name"]), float(each["intensity"]), each["flops"] / each["seconds"])
        for each in report[phase]["operations"]
        if each["share_of_limit"] is not None and each["seconds"] > 0
    ]
    return roofline(points, 1e9 * machine["bandwidth_gb_s"], 1e9 * machine["peak_gop_s"])


def _lanes(report: Report) -> str:
    lanes = report["decode"]["lanes"]
    return bars([(str(name), 100 * share) for name, share in lanes], "%")


def _md_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
