"""Results as rows of a table, in llama-bench's forms: md, csv, json, jsonl, sql. Fields have llama-bench's names where
it has them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgerun.profiling.bench import latencies_ms, streaming_figures
from edgerun.profiling.energy import Energy
from edgerun.profiling.figures import deviation, mean
from edgerun.profiling.session import Measured
from edgerun.units import format_size

FORMS = ("md", "csv", "json", "jsonl", "sql")
_TABLE = "test"  # of the SQL form, as llama-bench calls it


@dataclass(frozen=True)
class About:
    """What all rows of a session share."""

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    cpu_info: str
    build: str
    test_time: str


def row(about: About, measured: Measured, memory: dict[str, int]) -> dict[str, Any]:
    """One result, flat. memory: bytes by tier."""
    case, runs, rates = measured.case, measured.runs, measured.rates
    nanoseconds = [round(1e9 * (run.prompt_s * bool(case.prompt) + sum(run.steps_s))) for run in runs]
    out: dict[str, Any] = {
        "build": about.build,
        "cpu_info": about.cpu_info,
        "engine": measured.engine,
        "backend": measured.backend,
        "model_filename": about.model_filename,
        "model_type": about.model_type,
        "model_size": about.model_size,
        "model_n_params": about.model_n_params,
        "test": case.name,
        "n_threads": measured.threads,
        "n_batch": case.batch,
        "n_prompt": case.prompt,
        "n_gen": case.decode,
        "n_depth": case.depth,
        "test_time": about.test_time,
        "avg_ns": round(mean(nanoseconds) or 0),
        "stddev_ns": round(deviation(nanoseconds) or 0),
        "avg_ts": round(mean(rates) or 0.0, 4),
        "stddev_ts": round(deviation(rates) or 0.0, 4),
        "repetitions": len(runs),
        **latencies_ms(runs),
        **{f"memory_{tier}_bytes": n_bytes for tier, n_bytes in memory.items()},
        **streaming_figures(runs),
        "others_share": round(measured.noise.others_share, 4),
        "variation": None if measured.noise.variation is None else round(measured.noise.variation, 4),
        "load": measured.noise.load,
        "noisy": measured.noise.is_noisy,
    }
    for phase, tokens in (("prompt", case.prompt), ("decode", case.decode)):
        spent = [each for run in runs if (each := getattr(run, f"{phase}_energy")) is not None]
        if spent:
            out |= energy_fields(phase, spent, tokens)
    return out | {"samples_ns": nanoseconds, "samples_ts": [round(rate, 4) for rate in rates]}


def energy_fields(phase: str, spent: Sequence[Energy], tokens: int) -> dict[str, Any]:
    """Means of some windows' joules, by token too, with their method; of none, why."""
    gross = [each.gross_j for each in spent if each.gross_j is not None]
    net = [each.net_j for each in spent if each.net_j is not None]
    return {
        f"{phase}_j": mean(gross),
        f"{phase}_net_j": mean(net),
        f"{phase}_j_per_token": (mean(gross) or 0.0) / tokens if gross and tokens else None,
        f"{phase}_energy_method": spent[0].method if gross else f"unavailable: {spent[0].reason}",
    }


def render(form: str, rows: Sequence[dict[str, Any]]) -> str:
    """Rows in one of FORMS. All but md have every field."""
    if form == "json":
        return json.dumps(list(rows), indent=2)
    if form == "jsonl":
        return "\n".join(json.dumps(each) for each in rows)
    if form == "md":
        return markdown(rows)
    keys = list(dict.fromkeys(key for each in rows for key in each))
    if form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(keys)
        writer.writerows([_cell(each.get(key)) for key in keys] for each in rows)
        return out.getvalue().rstrip("\n")
    return _sql(keys, rows)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """As llama-bench's, with a column for what differs. What is noisy is no result, and marked so."""
    several = {str(each["engine"]) for each in rows} != {"edgerun"}
    header = ["model", "size", "params", *(["engine"] if several else []), "backend", "threads", "test", "t/s"]
    if any(each["n_batch"] for each in rows):
        header.insert(-2, "n_batch")
    joules = any(each.get(f"{phase}_j_per_token") is not None for each in rows for phase in ("prompt", "decode"))
    header += ["ttft p50/p95/p99 ms", "tpot p50/p95/p99 ms", *(["J/token"] if joules else [])]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(f" {_rule(name)} " for name in header) + "|"]
    for each in rows:
        cells = {
            "model": str(each["model_type"]),
            "size": format_size(int(each["model_size"])),
            "params": f"{int(each['model_n_params']) / 1e6:.2f} M",
            "engine": str(each["engine"]),
            "backend": str(each["backend"]),
            "threads": str(each["n_threads"] or ""),
            "n_batch": str(each["n_batch"] or "all"),
            "test": str(each["test"]),
            "t/s": f"{each['avg_ts']:.2f} ± {each['stddev_ts']:.2f}" + (" (noisy)" if each["noisy"] else ""),
            "ttft p50/p95/p99 ms": _percentiles(each, "ttft"),
            "tpot p50/p95/p99 ms": _percentiles(each, "decode"),
            "J/token": _joules(each),
        }
        lines.append("| " + " | ".join(cells[name].replace("|", "\\|") for name in header) + " |")
    return "\n".join(lines)


def _rule(name: str) -> str:
    return "---" if name in ("model", "engine", "backend", "test") else "--:"


def _percentiles(each: dict[str, Any], what: str) -> str:
    found = [each[f"{what}_p{percent}_ms"] for percent in (50, 95, 99)]
    return "" if found[0] is None else " / ".join(f"{value:g}" for value in found)


def _joules(each: dict[str, Any]) -> str:
    found = []
    for phase in ("prompt", "decode"):
        value = each.get(f"{phase}_j_per_token")
        if value is not None:
            word = " (estimate)" if "estimate" in each[f"{phase}_energy_method"] else ""
            found.append(f"{value:.3f}{word}")
    return " + ".join(found)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else "" if value is None else value


def _sql(keys: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    def literal(value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, bool | int | float):
            return str(int(value)) if isinstance(value, bool) else repr(value)
        return "'" + str(_cell(value)).replace("'", "''") + "'"

    def kind(key: str) -> str:
        values = [each[key] for each in rows if each.get(key) is not None]
        if values and all(isinstance(value, bool | int) for value in values):
            return "INTEGER"
        return "REAL" if values and all(isinstance(value, int | float) for value in values) else "TEXT"

    lines = [f"CREATE TABLE IF NOT EXISTS {_TABLE} (", ",\n".join(f"  {key} {kind(key)}" for key in keys), ");", ""]
    for each in rows:
        values = ", ".join(literal(each.get(key)) for key in keys)
        lines.append(f"INSERT INTO {_TABLE} ({', '.join(keys)}) VALUES ({values});")
    return "\n".join(lines)
