"""`edgerun quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli.options import json_option, overwrite_option
from edgerun.cli.progress import ProgressBars
from edgerun.cli.report import print_report

_TYPES = (
    "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0, Q1_0, Q2_0, F16, "
    "BF16, F32."
)


@click.command(short_help="Make a GGUF file of another type.")
@click.argument("model", metavar="IN.gguf")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option("--type", "kind", required=True, metavar="TYPE", help=_TYPES)
@overwrite_option
@json_option
def command(model: str, out: Path, kind: str, overwrite: bool, as_json: bool) -> None:
    """Write the model IN.gguf (a path or a name) to OUT.gguf with its weights as TYPE."""
    from edgerun.cli.loading import find_model
    from edgerun.convert import quantize_gguf

    with ProgressBars() as bars:
        report = quantize_gguf(find_model(model, bars), out, kind, overwrite=overwrite, events=bars)
    print_report(report, as_json)
