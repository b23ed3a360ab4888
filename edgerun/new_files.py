"""How files are made: whole or not at all, and by one at a time.

A file is written under a name of its own (`.NAME.<16 hex digits>.edgerun-tmp`), which nobody else uses, and renamed
when it is whole. While it is written it is locked; what is left by a process that was killed is not, and goes when the
next file is made in its folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from edgerun.errors import EdgerunError, UsageError

_SUFFIX = ".edgerun-tmp"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.edgerun-tmp", re.DOTALL)
_MOST_NAME_BYTES = 200  # of the name in a temporary one, so that this is no longer than a file system takes
_POLL_S = 0.2
_OWN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
NEW = os.O_CREAT | os.O_EXCL | _OWN


def _system_locks() -> Any:
    """The module of locks on open files; None where the system has none (Windows refuses to remove open ones)."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


_FCNTL = _system_locks()


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file to write, which gets the name `path` (in place of what has it) when the block ends without error and
    `check` accepts it under its temporary name; otherwise nothing is left of it. OSError as of opening and writing,
    UsageError for the name of a folder or device."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a file that could be written anew")
    remove_abandoned(path.parent)

    def create(name: str) -> int:
        return os.open(path.parent / name, NEW | os.O_RDWR, mode)

    made, fd = begin_file(path.name, create, path.parent.joinpath)
    temporary = path.parent / made
    try:
        with renamed_while_open(fd, lambda: temporary.replace(path)) as file:
            yield file
            if check is not None:
                file.flush()
                check(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def renamed_while_open(fd: int, rename: Callable[[], object]) -> Iterator[BinaryIO]:
    """The file of a descriptor, to write; at the end it is brought to the disk, renamed and closed. In this order:
    until it is closed it is locked, and nobody takes it for abandoned."""
    with os.fdopen(fd, "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if _FCNTL is not None:
            rename()
    if _FCNTL is None:  # an open file cannot be renamed there
        rename()


def begin_file(name: str, create: Callable[[str], int], path_of: Callable[[str], Path]) -> tuple[str, int]:
    """The name under which `name` is written, and a descriptor, locked. `create` opens a file of a name that is not
    there, `path_of` says where it lies."""
    while True:
        made = _temporary_name(name)
        fd = create(made)
        if _lock(fd) is not False and _is_at(fd, path_of(made)):
            return made, fd
        os.close(fd)  # somebody took it for abandoned before it was locked


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder of our own in `parent` (default: where the system has temporary files), removed afterwards, or by the
    next one in the same place when this process is killed. OSError when it cannot be made."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(parent)
    folder, fd = _begin_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if fd >= 0:
            os.close(fd)


@contextmanager
def resumed_file(path: Path) -> Iterator[BinaryIO]:
    """`path`, to go on writing to, made when it is not there. It is locked: EdgerunError when another process is
    writing it. Of a file system without locks, the file is always a new one."""
    for _ in range(100):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _OWN, 0o666)
        try:
            locked = _lock(fd)
            if locked is False:
                raise EdgerunError(f"{path}: another edgerun is writing it; wait until it has finished, or stop it")
            if locked and _is_at(fd, path):
                with os.fdopen(os.dup(fd), "r+b") as file:
                    yield file
                return
            if locked is None:
                path.unlink(missing_ok=True)  # whoever else has it open goes on in a file without a name
                fresh = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OWN, 0o666)
                with os.fdopen(fresh, "r+b") as file:
                    yield file
                return
        finally:
            os.close(fd)
    raise EdgerunError(f"{path}: others remove it again and again")


@contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None], *, wait_s: float) -> Iterator[None]:
    """Within, no other process makes `path`: for work that is not worth doing twice. `waiting` is called once when
    another has begun it. EdgerunError when it has not ended after `wait_s`. Where there can be no lock there is none:
    files are right without."""
    import filelock

    lock = filelock.FileLock(path.with_name(path.name + ".lock"), mode=0o600)
    held, end = False, time.monotonic() + wait_s
    while not held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire(timeout=0)
            held = True
        except filelock.Timeout:
            waiting()
            waiting = _nothing
            if time.monotonic() >= end:
                raise EdgerunError(
                    f"{path}: another edgerun is making it; wait until it has finished, or stop it"
                ) from None
            time.sleep(_POLL_S)
        except (OSError, NotImplementedError):
            break  # a folder that cannot be written, a file system without locks
    try:
        yield
    finally:
        if held:
            lock.release()


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left of `new_file` and `temporary_folder` in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unless_locked(Path(entry.path), entry.is_dir(follow_symlinks=False))


def _remove_unless_locked(path: Path, is_folder: bool) -> None:
    if _FCNTL is None:
        if not is_folder:
            path.unlink()  # refused while it is open; there are no locks for folders
        return
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OWN)
    try:
        status = os.fstat(fd)
        mine = status.st_uid == os.geteuid() and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        if mine and _lock(fd):
            shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(fd)


def _begin_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / _temporary_name("edgerun")
        folder.mkdir(mode=0o700)
        if _FCNTL is None:
            return folder, -1
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | _OWN)
            if _lock(fd) is not False and _is_at(fd, folder):
                return folder, fd
            os.close(fd)


def _temporary_name(name: str) -> str:
    short = os.fsdecode(os.fsencode(name)[:_MOST_NAME_BYTES])
    return f".{short}.{secrets.token_hex(8)}{_SUFFIX}"


def _lock(fd: int) -> bool | None:
    """Whether the open file is ours alone now, until it is closed; None: there are no locks here."""
    if _FCNTL is None:
        return None
    try:
        _FCNTL.flock(fd, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _nothing() -> None:
    """Said already."""
