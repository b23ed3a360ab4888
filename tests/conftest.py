"""What all tests share: no test touches the user's directories or the network, and kernels compile once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from edgerun.events import ignore
from edgerun.kernels import Kernels, load_kernels

# Found out before any test moves the home directory: compiled kernels are good for all of them.
_KERNEL_CACHE = Path(platformdirs.user_cache_dir("edgerun"))
_SHARED = Path(__file__).parents[2] / "shared"
_FORGOTTEN = ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "EDGERUN_THREADS")


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, also for programs that a test starts. Kernels alone are cached for real."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    for name in _FORGOTTEN:
        monkeypatch.delenv(name, raising=False)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the environment already
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "huggingface" / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    cache = Path(platformdirs.user_cache_dir("edgerun"))
    cache.mkdir(parents=True)
    (_KERNEL_CACHE / "kernels").mkdir(parents=True, exist_ok=True)
    (cache / "kernels").symlink_to(_KERNEL_CACHE / "kernels")
    for rates in _KERNEL_CACHE.glob("rates-*.json"):  # measured once
        (cache / rates.name).symlink_to(rates)
    return home


@pytest.fixture(scope="session")
def kernels() -> Iterator[Kernels]:
    """The implementation that EDGERUN_KERNELS names (default: the fastest that runs here)."""
    loaded = load_kernels(os.environ.get("EDGERUN_KERNELS", "auto"), events=ignore)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the project, beside its repository."""
    if not (_SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return _SHARED
