"""Where edgerun keeps what it makes. The CLI edge may pass other directories; the library takes them as arguments."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return Path(platformdirs.user_cache_dir("edgerun"))


def data_dir() -> Path:
    """Chat history and saved sessions."""
    return Path(platformdirs.user_data_dir("edgerun"))


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write beside its place and rename, so that a crash leaves nothing half-written under the name. Until then its
    name begins with who is writing. OSError when the folder cannot be made or written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{os.getpid()}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
