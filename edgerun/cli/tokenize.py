"""`edgerun tokenize`."""

from __future__ import annotations

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import print_json
from edgerun.cli.progress import ProgressBars
from edgerun.cli.stdin import checked_text, read_stdin


@click.command(short_help="Show the tokens of a text.")
@click.argument("model")
@click.argument("text", required=False)
@click.option("--no-special", is_flag=True, help="Without BOS, and with <|...|> as ordinary text.")
@json_option
def command(model: str, text: str | None, no_special: bool, as_json: bool) -> None:
    """Show the token ids of TEXT (or of stdin) for MODEL, each with its text."""
    from edgerun.cli.loading import find_model
    from edgerun.text import load_tokenizer

    with ProgressBars() as bars:
        path = find_model(model, bars)
    text = read_stdin() if text is None else checked_text(text)
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(text, add_special=not no_special, parse_special=not no_special)
    if as_json:
        print_json({"ids": ids, "tokens": [tokenizer.token_text(i) for i in ids]})
        return
    for i in ids:
        click.echo(f"{i:>7}  {tokenizer.token_text(i)!r}")
