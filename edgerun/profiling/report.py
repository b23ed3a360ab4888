"""A profile as one JSON document, from which every page is made, and which two can be compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerun.errors import FormatError, NotFoundError
from edgerun.units import format_size

_FORMATS = "edgerun profile "
FORMAT = f"{_FORMATS}1"
_MOST_BYTES = 16 << 20
_MOST_SHOWN = 200  # characters of what stands in a file
_MOST_NUMBER = 1e18  # beyond that, or infinite, or no number at all, it is no figure

Report = Mapping[str, Any]


def load_report(path: Path) -> Report:
    """What `edgerun profile -o json` wrote. NotFoundError, FormatError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_BYTES:
        raise FormatError(f"{path}: larger than a profile may be")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: no JSON: {str(error)[:100]}") from error
    format = said.get("format") if isinstance(said, dict) else None
    if isinstance(format, str) and format != FORMAT and format.startswith(_FORMATS):
        other = f"{_said(format)!r}, and this edgerun reads {FORMAT!r}"
        raise FormatError(f"{path}: a profile of another version, {other}: measure again with one version")
    if not isinstance(said, dict) or format != FORMAT:
        raise FormatError(f"{path}: no profile: `edgerun profile MODEL -o FILE.json` writes one")
    missing = [
        key
        for key in ("model", "prompt", "decode", "memory", "machine", "advice")
        if not isinstance(said.get(key), dict)
    ]
    if missing:
        raise FormatError(f"{path}: a profile without {', '.join(missing)}")
    return said


def headline(report: Report) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    prompt, decode, memory = report["prompt"], report["decode"], report["memory"]
    noisy = " (noisy: no result)" if report.get("noise", {}).get("is_noisy") else ""
    first = f"{prompt['tokens']} tokens at {prompt['tok_s']:.1f} a second, the first after {prompt['ttft_ms']:.0f} ms"
    tails = ", ".join(f"p{percent} {decode[f'p{percent}_ms']:.1f} ms" for percent in (50, 95, 99))
    peak, budget = format_size(int(memory["peak_bytes"])), format_size(int(memory["budget_bytes"]))
    return [
        ("prompt", f"{first}{noisy}"),
        ("decode", f"{decode['tok_s']:.1f} tokens a second, {tails}{noisy}"),
        *_planned(prompt, decode),
        *_energy(str(prompt["energy"]), str(decode["energy"])),
        ("memory", f"peak {peak} of {budget}; {memory['how']}"),
        ("bound by", f"{report['advice']['bound']}: {report['advice']['why']}"),
    ]


def _planned(prompt: Mapping[str, Any], decode: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the machine's rates beside the runs had promised, and how it compares with the runs' medians."""
    said = [
        f"{name} {each['planned_tok_s']:.1f} a second, {each['planned_tok_s'] / each['median_tok_s']:.2f} of measured"
        for name, each in (("prompt", prompt), ("decode", decode))
    ]
    return [("planned", "; ".join(said))]


def _energy(prompt: str, decode: str) -> list[tuple[str, str]]:
    """Of both phases; a reason why there is none is said once."""
    return [("energy", prompt)] if prompt == decode else [("energy, prompt", prompt), ("energy, decode", decode)]


def tiers(report: Report) -> list[tuple[str, str]]:
    """Memory by account, and what a token moves."""
    rows = [(str(name), format_size(int(n_bytes))) for name, n_bytes in report["memory"]["accounts_bytes"].items()]
    decode = report["decode"]
    rows += [("a token reads from memory", f"{decode['memory_bytes'] / 1e6:.0f} MB")]
    rows += [("a token reads from disk", f"{decode['read_bytes'] / 1e6:.1f} MB")]
    return rows


def operations(report: Report, phase: str) -> list[tuple[str, str, str, str, str]]:
    """(operation, ms, share of the phase, share of its limit, what limits it)."""
    found = report[phase]["operations"]
    return [
        (
            str(each["name"]),
            f"{1e3 * each['seconds']:.2f}",
            f"{100 * each['share']:.0f} %",
            "" if each["share_of_limit"] is None else f"{100 * each['share_of_limit']:.0f} %",
            str(each["binds"] or ""),
        )
        for each in found
    ]


def compare(first: Report, second: Report) -> list[tuple[str, str, str, str]]:
    """(figure, first, second, second by first) of two profiles."""
    rows: list[tuple[str, str, str, str]] = []
    for name, path, form in (
        ("prompt tokens/s", ("prompt", "tok_s"), "{:.1f}"),
        ("time to the first token, ms", ("prompt", "ttft_ms"), "{:.0f}"),
        ("decoded tokens/s", ("decode", "tok_s"), "{:.1f}"),
        ("planned prompt tokens/s", ("prompt", "planned_tok_s"), "{:.1f}"),
        ("planned decoded tokens/s", ("decode", "planned_tok_s"), "{:.1f}"),
        ("token p95, ms", ("decode", "p95_ms"), "{:.1f}"),
        ("peak memory, MiB", ("memory", "peak_mib"), "{:.0f}"),
        ("read a token, MB", ("decode", "read_mb"), "{:.1f}"),
        ("hit rate", ("decode", "hit_rate"), "{:.3f}"),
        ("prompt J/token", ("prompt", "j_per_token"), "{:.4f}"),
        ("decode J/token", ("decode", "j_per_token"), "{:.4f}"),
        ("memory bandwidth, GB/s", ("machine", "bandwidth_gb_s"), "{:.1f}"),
        ("disk, GB/s", ("machine", "disk_gb_s"), "{:.2f}"),
    ):
        one, other = _at(first, path), _at(second, path)
        if one is None and other is None:
            continue
        ratio = f"{other / one:.2f}" if one and other is not None else ""
        said = ["" if each is None else form.format(each) for each in (one, other)]
        rows.append((name, said[0], said[1], ratio))
    return rows


def differences(first: Report, second: Report) -> list[str]:
    """What the two were not measured alike in, so that nobody takes a ratio for more than it is."""
    found = []
    for name, path in (
        ("models", ("model", "file")),
        ("sizes of the file", ("model", "n_bytes")),
        ("machines", ("machine", "processor")),
        ("kernels", ("machine", "kernels")),
        ("threads", ("machine", "threads")),
        ("versions", ("machine", "edgerun")),
        ("prompts", ("prompt", "tokens")),
        ("decoded tokens", ("decode", "tokens")),
        ("shares in memory", ("memory", "how")),
    ):
        one, other = (_value(each, path) for each in (first, second))
        if one != other:
            found.append(f"different {name}: {_said(one)} and {_said(other)}")
    for which, each in (("first", first), ("second", second)):
        if _value(each, ("noise", "is_noisy")):
            found.append(f"the {which} is noisy, and no result: {_said(_value(each, ('noise', 'text')))}")
    return found


def _said(value: object) -> str:
    """Of a file that somebody else may have written, on a line."""
    return "nothing" if value is None else " ".join(str(value)[:_MOST_SHOWN].split())


def _value(report: Report, path: Sequence[str]) -> Any:
    value: Any = report
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _at(report: Report, path: Sequence[str]) -> float | None:
    value = _value(report, path)
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_NUMBER
    return float(value) if known else None
