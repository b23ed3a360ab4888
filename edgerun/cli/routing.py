"""Files of recorded routing: a JSON list over tokens of a list over layers of expert ids, none of a dense layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.cli.output import check_target, write_result

if TYPE_CHECKING:
    from edgerun.api import LLM


@contextmanager
def recorded_routing(llm: LLM, path: Path | None, *, overwrite: bool = False) -> Iterator[None]:
    """Write what the model routes within to `path`, whatever ends it. UsageError for a model without experts, and for a
    file that is there and is no routing, unless `overwrite`."""
    if path is None:
        yield
        return
    from edgerun.errors import UsageError
    from edgerun.models.plan import plan_of

    decoder = llm.engine.decoder
    if not decoder.spec.n_experts:
        raise UsageError(f"--record-routing: {llm.name} has no experts")
    check_target(path, _is_routing, overwrite=overwrite)
    tokens: list[list[list[int]]] = []

    chooses = [planned.mixture is not None for planned in plan_of(decoder.spec)]
    first, last = chooses.index(True), len(chooses) - 1 - chooses[::-1].index(True)

    def note(layer: int, ids: Any) -> None:
        if layer == first:
            tokens.extend([[] for _ in chooses] for _ in range(len(ids)))
        for row, chosen in zip(tokens[-len(ids) :], ids.tolist(), strict=True):
            row[layer] = chosen

    decoder.on_routing = note
    try:
        yield
    finally:
        decoder.on_routing = None
        whole = [row for row in tokens if row[last]]  # not what was cancelled half-way
        write_result(path, json.dumps(whole).encode())


def read_routing(path: Path) -> list[list[list[int]]]:
    """FormatError for anything but lists of lists of lists of numbers, alike for each token."""
    from edgerun.api.routing import checked_routing
    from edgerun.cli.json_files import read_json
    from edgerun.errors import FormatError, UsageError

    try:
        return checked_routing(read_json(path, "a routing")) or []
    except UsageError as error:
        raise FormatError(f"{path}: not a routing: {error}") from error


def _is_routing(path: Path) -> bool:
    from edgerun.errors import EdgerunError

    try:
        return path.read_bytes() == b"[]" or bool(read_routing(path))
    except (EdgerunError, OSError):
        return False
