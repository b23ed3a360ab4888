"""`edgerun convert`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli.options import json_option, overwrite_option
from edgerun.cli.progress import ProgressBars
from edgerun.cli.report import print_report


@click.command(short_help="Make a GGUF file from a checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="tokenizer.bin or .model of a llama2.c checkpoint.  [default: what the checkpoint has]",
)
@click.option("--quant", metavar="TYPE", help="Q4_K, Q8_0, F16, ...  [default: the weights keep their type]")
@overwrite_option
@json_option
def command(
    checkpoint: Path, out: Path, tokenizer: Path | None, quant: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write CHECKPOINT, a llama2.c .bin file or a Hugging Face directory with safetensors, as OUT.gguf."""
    from edgerun.convert import convert_checkpoint

    with ProgressBars() as bars:
        report = convert_checkpoint(checkpoint, out, tokenizer=tokenizer, quant=quant, overwrite=overwrite, events=bars)
    print_report(report, as_json)
