"""Where kernels come from: a library built ahead of time (`library`), else the cache of those compiled before, else the
compiler, whose work is then kept.

A kernel is a function (arguments: int64 address, low: int64, high: int64) -> None that does the items [low, high)
of an operation; `arguments` points to int64 words whose meaning `abi` states. It never raises, allocates
nothing and knows no Python object, so its object file can be kept and linked again by LLVM alone: a later start
compiles nothing and does not even import Numba. (Numba's own cache would: it also unpickles what it finds.) From a
library it needs no LLVM either.

A cache file is a sha256 of the rest, then the object code. Its name ends in the kernel's key, a digest of everything
that its code depends on: its name, its instruction set (of most kernels its lanes alone: `kernel_code.known_isa`), this
package's sources, the versions of Numba and LLVM, the processor and its features.

Kernels that different processes compiled, in whatever order, meet in one process, so no name in one object may ever be
found by another. Three things see to it, each enough alone:

- An object shows a single name, its entry (`codegen` makes all else private), and the entry's name holds the kernel's
  own name and key: two kernels' are different, whoever compiled them.
- Each object is linked by an engine of its own, which knows no other object. What it does not find in its object it can
  only look for in the process, where no kernel is.
- What it looks for there is checked before it is linked: an object must define its own entry and nothing else, and may
  ask for a few functions of the C library alone (`engine`).

An object that is damaged or fails the check is dropped with a Notice and compiled anew. Code is read only from files
that nobody but this user and root can have written (`trust`): elsewhere the checksum proves nothing. Where they could
be written by others kernels are compiled in memory at every start, which a Notice says.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgerun.device.cpu_features import cpu_features
from edgerun.errors import EdgerunError, FormatError, UnsupportedError, UntrustedError
from edgerun.events import EventSink, Notice, Progress, ignore
from edgerun.kernels.compile_processes import Job, compile_all
from edgerun.kernels.isa import ISAS, Isa
from edgerun.kernels.kernel_code import known_isa
from edgerun.kernels.library import BESIDE, KernelLibrary, find_library, library_name
from edgerun.new_files import one_at_a_time
from edgerun.paths import kept_folder
from edgerun.trust import Folder

_VERSION = 2  # of what is kept and how; 1: objects that shared names
_DIGEST_BYTES = 32
_MOST_WAIT_S = 300  # for another process that compiles
_MOST_BYTES = 4 << 20  # of a cache file; the largest kernel takes 70 KB


class KernelCache:
    """The kernels of one instruction set as callable addresses, good for as long as this object lives. Not thread-safe
    while compiling.

    `events` receives Progress when something must be compiled, a Notice for what is damaged, and one when `directory`
    cannot be trusted."""

    def __init__(self, isa: Isa, directory: Path, events: EventSink = ignore) -> None:
        self._isa = isa
        self._directory = directory
        self._events = events
        self._engines: list[Any] = []  # one an object; they own the code
        self._addresses: dict[str, int] = {}
        self._said = False
        self.compiled: list[str] = []  # names, by this object
        self.library = self._find_library()

    def address(self, name: str) -> int:
        """The kernel's address, compiling it if no start before did."""
        if name not in self._addresses:
            self.prepare([name])
        return self._addresses[name]

    def name_at(self, address: int) -> str:
        """The kernel that begins there; "" for none that is ready."""
        return next((name for name, known in self._addresses.items() if known == address), "")

    def prepare(self, names: Iterable[str]) -> None:
        """Have all of `names` ready. UnsupportedError for a kernel that cannot be linked on this system, or must be
        compiled where there is no compiler."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._addresses and not self._take(name)]
        missing = self._load_kept(wanted)
        if not missing:
            return
        self._check_compiler(missing)
        with self._alone():
            self._compile(self._load_kept(missing))

    def _compile(self, missing: list[str]) -> None:
        if not missing:  # another process was so kind
            return
        task = "compile kernels" if self._said else "compile kernels (once on this machine)"
        self._events(Progress(task, 0, len(missing), "kernels"))
        jobs = [Job(name, self._isa, entry_name(name, self._isa)) for name in missing]
        with contextlib.closing(compile_all(jobs, self._events)) as objects:
            for done, (name, code) in enumerate(objects, 1):
                self._link(name, code)
                self._keep(name, code)
                self.compiled.append(name)
                self._events(Progress(task, done, len(missing), "kernels"))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other process compiles for this cache: two that start together would do the same twice."""

        def waiting() -> None:
            self._events(Notice("another edgerun is compiling kernels; waiting for it"))

        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError, EdgerunError):  # not a folder to lock in, or nobody waits so long
                kept_folder(self._directory, make=True).close()
                held.enter_context(one_at_a_time(self._directory, waiting, wait_s=_MOST_WAIT_S))
            yield

    @property
    def origin(self) -> str:
        """Where the kernels that are ready come from, for people."""
        kept = len(self._engines) - len(self.compiled)
        taken = len(self._addresses) - len(self._engines)
        of_library = "" if self.library is None else f"{taken} from {self.library.path} ({self.library.built})"
        parts = (of_library, f"{kept} compiled before" if kept else "", f"{len(self.compiled)} compiled now")
        return ", ".join(part for part in parts[: 3 if self.compiled else 2] if part)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that no library has and no start before this one has compiled, as far as names of files tell."""
        wanted = [name for name in names if not self._take(name)]
        if wanted and _lacking():  # nothing is compiled, nor linked: `prepare` says so
            return wanted
        return [name for name in wanted if not (self._directory / file_name(name, self._isa)).is_file()]

    def _find_library(self) -> KernelLibrary | None:
        try:
            return find_library(self._isa.name, self._directory)
        except (FormatError, UntrustedError) as error:
            self._events(Notice(f"a library of kernels is not used: {error}"))
        except OSError:  # it went away, or cannot be read
            pass
        return None

    def _take(self, name: str) -> bool:
        """Whether the library has the kernel just as it would be compiled."""
        address = self.library.address(name, kernel_digest(name, self._isa)) if self.library is not None else None
        if address is None:
            return False
        self._addresses[name] = address
        return True

    def _check_compiler(self, missing: list[str]) -> None:
        lacking = _lacking()
        if lacking:
            what = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
            others = ", ".join(name for name in ISAS if (BESIDE / library_name(name)).is_file())
            where = f"{self.library.path} has not just these" if self.library else "there is no library of them"
            where += f"; libraries here: {others}" if others else ""
            raise UnsupportedError(
                f"the {self._isa.name} kernels {what} must be compiled ({where}), which needs {' and '.join(lacking)}: "
                f"pip install {' '.join(lacking)}; or use the kernels `reference`, which need neither"
            )

    def _load_kept(self, names: list[str]) -> list[str]:
        """Load what the cache has of `names`; returns the others."""
        if not names or "llvmlite" in _lacking():  # without it nothing can be linked
            return names
        try:
            with kept_folder(self._directory) as folder:
                return [name for name in names if not self._load_from(folder, name)]
        except UntrustedError as error:
            self._distrust(error)
        except OSError:  # no folder yet, or one that cannot be read
            return names
        return names

    def _load_from(self, folder: Folder, name: str) -> bool:
        """Whether it was there; what is there and cannot be used is dropped."""
        file = file_name(name, self._isa)
        try:
            content = folder.read(file, _MOST_BYTES)
            digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if digest != hashlib.sha256(code).digest():
                raise FormatError(f"{folder.path / file}: its checksum is wrong")
            self._link(name, code)
        except (FormatError, UntrustedError) as error:
            self._events(Notice(f"a compiled kernel is dropped from the cache and made anew: {error}"))
            with contextlib.suppress(OSError):  # then it is replaced, or found so again
                folder.remove(file)
            return False
        except OSError:  # not there, or unreadable
            return False
        return True

    def _link(self, name: str, code: bytes) -> None:
        """FormatError, UnsupportedError (one of them) for an object that does not define just what it should."""
        from edgerun.kernels.engine import link

        engine, self._addresses[name] = link(code, entry_name(name, self._isa))
        self._engines.append(engine)

    def _keep(self, name: str, code: bytes) -> None:
        """A cache that cannot be written only costs the next start its time."""
        if self._said:
            return
        try:
            with kept_folder(self._directory, make=True) as folder:
                folder.replace(file_name(name, self._isa), [file_content(code)])
        except UntrustedError as error:
            self._distrust(error)
        except OSError:
            return

    def _distrust(self, error: UntrustedError) -> None:
        if not self._said:
            self._said = True
            self._events(Notice(f"compiled kernels are neither kept nor taken from the cache: {error}"))


def _lacking() -> list[str]:
    """Packages without which nothing can be compiled."""
    return [package for package in ("numba", "llvmlite") if find_spec(package) is None]


def entry_name(name: str, isa: Isa) -> str:
    """The one name that a kernel's object shows."""
    return f"edgerun_{name}_{_key(name, isa)}"


def file_name(name: str, isa: Isa) -> str:
    """Of a kernel in the cache."""
    return f"{name}-{known_isa(name, isa).name}-{_key(name, isa)}.kernel"


def file_content(code: bytes) -> bytes:
    """Of the file that keeps object code."""
    return hashlib.sha256(code).digest() + code


def _key(name: str, isa: Isa) -> str:
    return hashlib.sha256(f"{kernel_digest(name, isa)} {machine_stamp()}".encode()).hexdigest()[:32]


def kernel_digest(name: str, isa: Isa) -> str:
    """Of what a kernel computes, whichever compiler made it and for which processor with this instruction set. Equal
    for sets that share the kernel."""
    known = known_isa(name, isa)
    return hashlib.sha256(f"{_VERSION} {name} {known!r} {sources_digest()}".encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Of this package's sources."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:24]


@lru_cache(maxsize=1)
def machine_stamp() -> str:
    """A digest of what compiled code depends on beside its source: the compiler and the processor."""
    import llvmlite.binding as llvm

    try:
        features = dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on this platform
        features = {}
    versions = [_version(package) for package in ("numba", "llvmlite")]
    said = f"{versions} {llvm.get_host_cpu_name()} {sorted(features.items())} {sorted(cpu_features())}"
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _version(package: str) -> str:
    """Of a package that may be installed, by the name of its folder of metadata where it has one: importing
    `importlib.metadata`, which reads it, takes 20 ms of every start."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "none"
    named = sorted(each.stem for each in Path(spec.origin).parents[1].glob(f"{package}-*.dist-info"))
    if len(named) == 1:
        return named[0].removeprefix(f"{package}-")
    from importlib.metadata import version

    return version(package)
