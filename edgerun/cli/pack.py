"""`edgerun pack`."""

from __future__ import annotations

import os

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import print_json
from edgerun.cli.progress import ProgressBars


@click.command(short_help="Lay a model out on disk for faster streaming.")
@click.argument("model")
@click.option(
    "--kernels",
    default="auto",
    show_default=True,
    envvar="EDGERUN_KERNELS",
    show_envvar=True,
    help="For which implementation.",
)
@click.option("--verify", is_flag=True, help="Only compare the file that is there with all of MODEL.")
@json_option
def command(model: str, kernels: str, verify: bool, as_json: bool) -> None:
    """Write MODEL.gguf.edgepack beside MODEL: what is streamed, in the layout that the kernels of this machine use.

    It takes about as much room as the model and is used by itself from then on, whenever the model is streamed and
    the file fits it: same kernels, and a MODEL with the size, time and inode that it had. An interrupted run goes on
    where it stopped; nothing has the final name before all of it has been written and read back. Run again, it compares
    every block with all of MODEL, and makes the file anew when MODEL is another. Delete it at any time.
    """
    from edgerun.cli.loading import find_model
    from edgerun.errors import EdgerunError
    from edgerun.formats.gguf import open_gguf
    from edgerun.formats.packfile import pack_path
    from edgerun.kernels import load_kernels
    from edgerun.models import load_spec
    from edgerun.units import format_size
    from edgerun.weights.packing import verify_pack, write_pack

    with ProgressBars() as bars:
        path = find_model(model, bars)
        impl = load_kernels(kernels, events=bars)
        try:
            with open_gguf(path) as gguf:
                spec = load_spec(gguf)
                if verify:
                    out, header = pack_path(path), verify_pack(gguf, spec, impl, events=bars)
                else:
                    out, header = write_pack(gguf, spec, impl, events=bars)
        except OSError as error:
            if isinstance(error, EdgerunError):
                raise
            what = "read" if verify else "write"
            raise EdgerunError(f"cannot {what} the pack file: {os.strerror(error.errno or 0)}") from error
        finally:
            impl.close()
    if as_json:
        print_json(
            {
                "path": out,
                "layout": header.layout,
                "kind": header.kind,
                "n_bytes": header.file_bytes,
                "digest": header.digest,
            }
        )
        return
    click.echo(f"{out}: {header.blocks} {header.kind}, {format_size(header.file_bytes)}, verified")
