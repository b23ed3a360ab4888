"""Files of recorded routing: a JSON list over tokens of a list over layers of expert ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.cli.output import check_target, write_result

if TYPE_CHECKING:
    from edgerun.api import LLM

_MOST_BYTES = 256 << 20


@contextmanager
def recorded_routing(llm: LLM, path: Path | None, *, overwrite: bool = False) -> Iterator[None]:
    """Write what the model routes within to `path`, whatever ends it. UsageError for a model without experts, and for a
    file that is there and is no routing, unless `overwrite`."""
    if path is None:
        yield
        return
    from edgerun.errors import UsageError

    decoder: Any = llm.engine.decoder
    if not decoder.spec.n_experts:
        raise UsageError(f"--record-routing: {llm.name} has no experts")
    check_target(path, _is_routing, overwrite=overwrite)
    tokens: list[list[list[int]]] = []

    def note(layer: int, ids: Any) -> None:
        if layer == 0:
            tokens.extend([] for _ in range(len(ids)))
        for row, chosen in zip(tokens[-len(ids) :], ids.tolist(), strict=True):
            row.append(chosen)

    decoder.on_routing = note
    try:
        yield
    finally:
        decoder.on_routing = None
        whole = [row for row in tokens if len(row) == decoder.spec.n_layers]  # not what was cancelled half-way
        write_result(path, json.dumps(whole).encode())


def read_routing(path: Path) -> list[list[list[int]]]:
    """FormatError for anything but lists of lists of lists of numbers, alike for each token."""
    from edgerun.errors import FormatError

    if path.stat().st_size > _MOST_BYTES:
        raise FormatError(f"{path}: larger than {_MOST_BYTES >> 20} MiB: not a routing")
    try:
        said: list[list[list[int]]] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {error}") from error
    fine = isinstance(said, list) and bool(said) and all(_is_token(token, said[0]) for token in said)
    if not fine:
        raise FormatError(f"{path}: not a routing: it must be a list over tokens of lists over layers of expert ids")
    return said


def _is_routing(path: Path) -> bool:
    from edgerun.errors import FormatError

    try:
        return path.read_bytes() == b"[]" or bool(read_routing(path))
    except (FormatError, OSError):
        return False


def _is_token(token: Any, first: Any) -> bool:
    return (
        isinstance(token, list)
        and bool(token)
        and len(token) == len(first)
        and all(isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids) for ids in token)
    )
