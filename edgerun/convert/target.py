"""The file that a conversion writes: over nothing that is there unless told, and only if edgerun itself loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgerun.errors import EdgerunError, FormatError, UnsupportedError, UsageError
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec
from edgerun.text import load_tokenizer
from edgerun.weights import make_catalog

Check = Callable[[Path], None]


def check_target(out: Path, *, overwrite: bool) -> None:
    """UsageError for what is not a file, and, unless `overwrite`, for what is there already."""
    if out.is_dir():
        raise UsageError(f"{out}: a directory; name the GGUF file to write")
    if out.exists() and not out.is_file():
        raise UsageError(f"{out}: not a file; name the GGUF file to write")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already; name another file, or say that it may be overwritten (--overwrite)")


def refusing(source: Path, out: Path, *, overwrite: bool) -> Check:
    """For `GgufWriter`: raises, before `out` gets its name, FormatError or UnsupportedError when edgerun would not load
    what was written, and UsageError when somebody else has made `out` meanwhile."""

    def check(written: Path) -> None:
        try:
            check_loads(written)
        except EdgerunError as error:
            kind = UnsupportedError if isinstance(error, UnsupportedError) else FormatError
            said = str(error).replace(str(written), out.name)
            raise kind(f"{source}: what it converts to would not load: {said}") from error
        check_target(out, overwrite=overwrite)

    return check


def check_loads(path: Path) -> None:
    """What loading checks before it reads weights. Raises what `open_gguf`, `load_spec` and `load_tokenizer` raise; a
    tokenizer of an unknown kind is no obstacle."""
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        make_catalog(spec.tensors, spec.n_layers)
        try:
            load_tokenizer(gguf.metadata)
        except UnsupportedError:
            return  # the model runs on token ids
