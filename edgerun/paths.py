"""Where edgerun keeps what it makes. The CLI edge may pass other directories; the library takes them as arguments."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import platformdirs

from edgerun.errors import EdgerunError, NotFoundError, UsageError
from edgerun.new_files import new_file
from edgerun.trust import Folder, open_folder


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return _of_user(platformdirs.user_cache_dir, "cache")


def data_dir() -> Path:
    """Chat history and saved sessions."""
    return _of_user(platformdirs.user_data_dir, "data")


def config_dir() -> Path:
    """What the user chose, or had measured."""
    return _of_user(platformdirs.user_config_dir, "config")


def _of_user(folder: Callable[[str], str], kind: str) -> Path:
    """The user's `folder`; for a user without a home (no HOME, no entry in the list of users) one of his own among the
    temporary files."""
    try:
        found = folder("edgerun")
    except RuntimeError:
        found = "~"
    if not found.startswith("~"):  # older versions of platformdirs leave it there
        return Path(found)
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"edgerun-{user}" / kind


def user_path(text: str | Path) -> Path:
    """The path that a user means, `~` being a home directory. UsageError for what no path can be, NotFoundError for
    the home of a user who does not exist."""
    name = str(text)
    try:
        unfit = not name or b"\0" in os.fsencode(name)
    except UnicodeEncodeError:
        unfit = True
    if unfit:
        raise UsageError(f"{name[:80]!r} is not a path: it must be some text without NUL and lone surrogates")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise NotFoundError(f"{name}: {error}") from error


def kind_of(path: Path) -> Literal["file", "directory", ""]:
    """What stands at `path`; "" for nothing, also where the name is too long for there to be anything. EdgerunError
    where that cannot be found out."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return ""
        raise EdgerunError(f"{path}: {error.strerror}") from error
    return "directory" if stat.S_ISDIR(mode) else "file"


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


def write_kept(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of the cache, for this user alone, beside its place and rename it, so that a crash leaves nothing
    half-written under the name. OSError when the folder cannot be made or written, UntrustedError when others may
    write there."""
    with kept_folder(path.parent, make=True) as folder:
        folder.replace(path.name, pieces)


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of the user's, wherever it is, as `new_file` does, for this user alone. OSError when the folder
    cannot be made or written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with new_file(path, mode=0o600) as file:
        for piece in pieces:
            file.write(piece)
