"""Several devices that run one model together."""

from __future__ import annotations

from importlib.util import find_spec

from edgerun.errors import EdgerunError

_PACKAGES = ("cryptography", "msgspec", "spake2", "zeroconf")


def check_installed() -> None:
    """EdgerunError unless the packages are there that only a cluster needs. Modules of this package import them, so
    whoever imports one of those calls this first."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise EdgerunError(f"a cluster needs {', '.join(missing)}: pip install 'edgerun[cluster]'")
