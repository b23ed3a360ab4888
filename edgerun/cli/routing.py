"""Files of recorded routing: a JSON list over tokens of a list over layers of expert ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.api import LLM


@contextmanager
def recorded_routing(llm: LLM, path: Path | None) -> Iterator[None]:
    """Write what the model routes within to `path`, whatever ends it. UsageError for a model without experts."""
    if path is None:
        yield
        return
    from edgerun.errors import UsageError

    decoder: Any = llm.engine.decoder
    if not decoder.spec.n_experts:
        raise UsageError(f"--record-routing: {llm.name} has no experts")
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
        path.write_text(json.dumps(whole), encoding="utf-8")


def read_routing(path: Path) -> list[list[list[int]]]:
    """FormatError for anything but lists of lists of lists of numbers, alike for each token."""
    from edgerun.api.planning import checked_routing
    from edgerun.cli.json_files import read_json
    from edgerun.errors import FormatError, UsageError

    try:
        return checked_routing(read_json(path, "a routing")) or []
    except UsageError as error:
        raise FormatError(f"{path}: not a routing: {error}") from error
