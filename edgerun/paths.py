"""Where edgerun keeps what it makes, and how files are made: whole or not at all, and by one at a time.

The CLI edge may pass other directories; the library takes them as arguments.

A file is written under a name of its own (`.NAME.<16 hex digits>.edgerun-tmp`), which nobody else uses, and renamed
when it is whole. While it is written it is locked; what is left by a process that was killed is not, and goes when the
next file is made in its folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal

import platformdirs

from edgerun.errors import EdgerunError, NotFoundError, UsageError

_SUFFIX = ".edgerun-tmp"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.edgerun-tmp", re.DOTALL)
_MOST_NAME_BYTES = 200  # of the name in a temporary one, so that this is no longer than a file system takes
_POLL_S = 0.2


def _system_locks() -> Any:
    """The module of locks on open files; None where the system has none (Windows refuses to remove open ones)."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


_FCNTL = _system_locks()


def cache_dir() -> Path:
    """Compiled kernels and other things that can be made again."""
    return _of_user(platformdirs.user_cache_dir, "cache")


def data_dir() -> Path:
    """Chat history and saved sessions."""
    return _of_user(platformdirs.user_data_dir, "data")


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


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that only its owner may read, as `new_file` does. OSError when the folder cannot be made or
    written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with new_file(path, mode=0o600) as file:
        for piece in pieces:
            file.write(piece)


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file to write, which gets the name `path` (in place of what has it) when the block ends without error and
    `check` accepts it under its temporary name; otherwise nothing is left of it. OSError as of opening and writing,
    UsageError for the name of a folder or device."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a file that could be written anew")
    remove_abandoned(path.parent)
    temporary, fd = _begin_file(path, mode)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            if _FCNTL is not None:  # still locked: nobody takes it for abandoned
                temporary.replace(path)
        if _FCNTL is None:  # an open file cannot be renamed there
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _flags(), 0o666)
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
                fresh = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags(), 0o666)
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
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _flags())
    try:
        status = os.fstat(fd)
        mine = status.st_uid == os.geteuid() and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        if mine and _lock(fd):
            shutil.rmtree(path) if is_folder else path.unlink()
    finally:
        os.close(fd)


def _begin_file(path: Path, mode: int) -> tuple[Path, int]:
    while True:
        temporary = path.parent / _temporary_name(path.name)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags(), mode)
        if _lock(fd) is not False and _is_at(fd, temporary):
            return temporary, fd
        os.close(fd)  # somebody took it for abandoned before it was locked


def _begin_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = parent / _temporary_name("edgerun")
        folder.mkdir(mode=0o700)
        if _FCNTL is None:
            return folder, -1
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | _flags())
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


def _flags() -> int:
    return getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def _nothing() -> None:
    """Said already."""
