"""Where edgerun keeps what it makes. The CLI edge may pass other directories; the library takes them as arguments."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return Path(platformdirs.user_cache_dir("edgerun"))


def data_dir() -> Path:
    """Chat history and saved sessions."""
    return Path(platformdirs.user_data_dir("edgerun"))
