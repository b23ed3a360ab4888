"""`edgerun show`."""

from __future__ import annotations

from typing import Any

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import as_dict, print_json, print_pairs


@click.command(short_help="Describe a model file.")
@click.argument("model")
@click.option("--template", is_flag=True, help="Print the chat template only.")
@click.option("--metadata", is_flag=True, help="Print all metadata, long values shortened.")
@json_option
def command(model: str, template: bool, metadata: bool, as_json: bool) -> None:
    """Describe MODEL: a path, an alias, or the name of a downloaded model."""
    from edgerun.api.planning import sequence_memory_of, slow_types_of
    from edgerun.api.refusals import refusals_of
    from edgerun.errors import NotFoundError
    from edgerun.hub import resolve, show
    from edgerun.hub.info import metadata_table
    from edgerun.units import format_size

    path = resolve(model, download=False)
    if metadata:
        table = metadata_table(path)
        print_json(table) if as_json else print_pairs(table)
        return
    info = show(path)
    if template:
        if info.chat_template is None:
            raise NotFoundError(f"{model} has no chat template")
        print_json({"chat_template": info.chat_template}) if as_json else click.echo(info.chat_template)
        return
    slow, notice = slow_types_of(path)
    sequence, refused = sequence_memory_of(path), refusals_of(path)
    if as_json:
        found = {"slow_types": slow, "sequence": sequence and as_dict(sequence), "refused": refused.as_dict()}
        print_json({**as_dict(info), **found})
        return
    print_pairs(
        {
            "name": info.name,
            "architecture": info.architecture,
            "parameters": _count(info.parameters),
            "quantisation": info.quantisation,
            "weights": ", ".join(f"{name} ({count} tensors)" for name, count in info.types.items()),
            "slow here": notice or None,
            "size": format_size(info.n_bytes),
            "layers": info.layers,
            "experts": info.experts or None,
            "embedding": info.embedding_length,
            "context": info.context_length,
            "a sequence": sequence and _sequence_line(sequence),
            "vocabulary": info.vocabulary,
            "tokenizer": info.tokenizer,
            "chat template": "yes" if info.chat_template is not None else "no: the model continues texts",
            **refused.lines(),
            "licence": info.licence,
            "pack file": info.pack and _pack_line(info.pack),
            "file": path,
        }
    )


def _sequence_line(sequence: Any) -> str:
    from edgerun.units import format_size

    grows = f"{format_size(sequence.position_bytes)} for each token"
    if not sequence.state_bytes:
        return grows
    return f"{grows}; states of {format_size(sequence.state_bytes)} whatever its length, as much for each checkpoint"


def _pack_line(pack: Any) -> str:
    from edgerun.units import format_size

    state = "of this file" if pack.current else "not used: the file was copied or changed since, see `edgerun pack`"
    return f"{format_size(pack.n_bytes)}, layout {pack.layout}, {state}; model digest {pack.digest}"


def _count(n: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return str(n)
