"""Where edgerun keeps what it makes. The CLI edge may pass other directories; the library takes them as arguments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import platformdirs

from edgerun.trust import Folder, open_folder


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return Path(platformdirs.user_cache_dir("edgerun"))


def data_dir() -> Path:
    """Chat history and saved sessions."""
    return Path(platformdirs.user_data_dir("edgerun"))


def kept_folder(path: Path, *, make: bool = False) -> Folder:
    """A folder of the cache, if nobody but this user and root can have written to it: see `trust`. `make`: it is made
    when it is missing, for this user alone. OSError, UntrustedError (one of them)."""
    root = cache_dir()
    if path.is_relative_to(root):
        return open_folder(root, path.relative_to(root).parts, make=make)
    return open_folder(path, make=make)


def read_kept(path: Path) -> bytes:
    """A whole file of the cache. OSError when there is none, UntrustedError (an OSError too) when somebody else can
    have written it, FormatError when it is larger than anything that is read so."""
    with kept_folder(path.parent) as folder:
        return folder.read(path.name)


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of the cache beside its place and rename it, so that a crash leaves nothing half-written under the
    name. OSError when the folder cannot be made or written, UntrustedError when others may write there."""
    with kept_folder(path.parent, make=True) as folder:
        folder.replace(path.name, pieces)
