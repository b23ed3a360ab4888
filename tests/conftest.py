"""What all tests share: no test touches the user's directories or the network, and kernels compile once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import platformdirs
import pytest

from edgerun.events import ignore
from edgerun.kernels import Kernels, load_kernels
from edgerun.kernels.compile import file_name
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.isas import IMPLEMENTATIONS, KERNELS_DIR

if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # programs that tests start would inherit it from `nohup`
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

_USERS_CACHE = KERNELS_DIR.parent
_KERNEL_FILES = [file_name(kernel, isa) for isa in IMPLEMENTATIONS for kernel in SOURCES]
_SHARED = Path(__file__).parents[2] / "shared"
_KEPT = ("hot", "prefill")  # what a used home has beside kernels and rates
_FORGOTTEN = ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "EDGERUN_THREADS")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a second run in a used home needs: `--keep-caches=DIR` in the first, `--used-caches=DIR` in the second."""
    group = parser.getgroup("edgerun")
    group.addoption(
        "--keep-caches", type=Path, help="collect what tests leave in the cache directory under this folder"
    )
    group.addoption("--used-caches", type=Path, help="let every test begin with the caches that are under this folder")
    group.addoption(
        "--every-type", action="store_true", help="every type of weights on every set of kernels, not one of each kind"
    )
    group.addoption(
        "--shuffle", type=int, help="run modules, and the tests of each, in an order that this number makes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Another order, module by module, so that what they share is made once."""
    seed = config.getoption("--shuffle")
    if seed is None:
        return
    rng = random.Random(seed)
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.split("::")[0], []).append(item)
    order = list(modules)
    rng.shuffle(order)
    for name in order:
        rng.shuffle(modules[name])
    items[:] = [item for name in order for item in modules[name]]


@pytest.fixture(autouse=True)
def user_home(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Path]:
    """A home directory, also for programs that a test starts: empty, or with the caches of `--used-caches`. Kernels
    alone are cached for real: its files are second names of the user's, since edgerun follows no links into its
    cache. A test that left their folder as it was hands it to the next."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
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
    mine = cache / "kernels"
    KERNELS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in (cache.parent, cache):  # with this mode each, whatever the umask
        folder.mkdir(mode=0o700)
    ready = tmp_path_factory.getbasetemp() / "kernels-for-the-next-test"
    try:
        ready.rename(mine)
    except OSError:
        mine.mkdir(mode=0o700)
        _share(KERNELS_DIR, mine, _KERNEL_FILES)
    as_given = _state(mine)
    _share(_USERS_CACHE, cache, (path.name for path in _USERS_CACHE.glob("rates-*.json")))  # measured once
    used, kept = request.config.getoption("--used-caches"), request.config.getoption("--keep-caches")
    for name in _KEPT if used is not None else ():
        _share_tree(used / name, cache / name)
    yield home
    for name in _KEPT if kept is not None else ():
        _share_tree(cache / name, kept / name)
    if mine.is_dir() and not mine.is_symlink():
        if _state(mine) == as_given:  # hundreds of links need not be made anew
            mine.rename(ready)
        else:
            _share(mine, KERNELS_DIR, {path.name for path in mine.glob("*.kernel")}.intersection(_KERNEL_FILES))


def _state(folder: Path) -> tuple[int, ...]:
    """What differs as soon as a file of the folder came, went or was replaced, or its rights were changed."""
    found = folder.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_mode, found.st_uid, found.st_gid


def _share(source: Path, target: Path, names: Iterable[str]) -> None:
    """Give files of one folder a name in another, where they are and have none."""
    for name in names:
        try:
            os.link(source / name, target / name)
        except (FileNotFoundError, FileExistsError):
            continue
        except OSError:  # another file system
            shutil.copy(source / name, target / name)


def _share_tree(source: Path, target: Path) -> None:
    """`_share` for all files below a folder. Folders are this user's alone, as edgerun makes them."""
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(mode=0o700, parents=True, exist_ok=True)
        _share(Path(folder), here, [name for name in names if (Path(folder) / name).is_file()])


@pytest.fixture
def nothing_calibrated(user_home: Path) -> None:
    """For tests that say what happens before the first calibration: in a used home there may be one of their model."""
    shutil.rmtree(Path(platformdirs.user_cache_dir("edgerun")) / "prefill", ignore_errors=True)


@pytest.fixture(scope="session")
def kernels() -> Iterator[Kernels]:
    """The implementation that EDGERUN_KERNELS names (default: the fastest that runs here)."""
    name = os.environ.get("EDGERUN_KERNELS", "auto")
    if name == "reference":
        loaded = load_kernels(name)
    else:  # kept where they outlive the first test's home
        loaded = SimdKernels.load(name, threads=None, events=ignore, directory=KERNELS_DIR)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the project, beside its repository."""
    if not (_SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data, which is not here")
    return _SHARED
