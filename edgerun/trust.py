"""Files that edgerun keeps for itself, read and written only where nobody else can have put them.

What is in the cache is believed: machine code from it is run, graphs are given to drivers, ranges decide what a model
answers. A checksum is nobody's secret, so it protects against accidents alone. What protects against others is the
system's own bookkeeping: a file counts only if this user or root owns it and nobody else may write it, and if the same
holds for every folder that leads to it, since who may write a folder may exchange what is in it. A sticky folder (/tmp)
may lead to the cache, because only an entry's owner can exchange that entry. (An ACL that lets others write shows in
the mode's group bits.)

Folders are opened one from another and looked at once they are open, so that no name can come to mean something else
between the look and the use. The walk begins at the home directory where it leads to the cache, as OpenSSH's does, else
at the root: who can exchange a home directory has its user's programs anyway. Links that lead to the cache folder are
followed if this user or root made them; in it none is.

On Windows, which has neither user ids nor modes, nothing is looked at: the folder lies in the user's profile, which the
system keeps others out of, and who moves the cache elsewhere answers for the place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from edgerun.errors import FormatError, UntrustedError
from edgerun.new_files import NEW, begin_file, remove_abandoned, renamed_while_open

_FOLDER = (
    getattr(os, "O_PATH", os.O_RDONLY)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_OTHERS_MAY_WRITE = 0o022
_MOST_LINKS = 40
MOST_BYTES = 256 << 20  # of a file that is read whole


class Folder:
    """A folder that only this user and root can have written to. Close it, or use it as a context.

    Methods take names of files in it and raise OSError as the system does, UntrustedError for a file that somebody
    else owns or may write, or that is a link."""

    def __init__(self, path: Path, fd: int | None, uid: int) -> None:
        self.path = path
        self._fd = fd  # None: a system without such descriptors
        self._uid = uid

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def read(self, name: str, most_bytes: int = MOST_BYTES) -> bytes:
        """A whole file. FormatError for one that is larger."""
        fd = self._open_file(name)
        with os.fdopen(fd, "rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise FormatError(f"{self.path / name}: more than the {most_bytes} bytes that such a file can have")
        return content

    def replace(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write beside its place and rename, so that a crash leaves nothing half-written under the name: see
        `new_files`. Nobody else may read or write it."""
        remove_abandoned(self.path)

        def create(made: str) -> int:
            return os.open(self._at(made), NEW | os.O_RDWR, 0o600, dir_fd=self._fd)

        def rename() -> None:
            os.replace(self._at(made), self._at(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)

        made, fd = begin_file(name, create, self.path.joinpath)
        try:
            with renamed_while_open(fd, rename) as file:
                for piece in pieces:
                    file.write(piece)
        except BaseException:
            self.remove(made)
            raise

    def remove(self, name: str) -> None:
        """Also where it is not there."""
        try:
            os.unlink(self._at(name), dir_fd=self._fd)
        except FileNotFoundError:
            return

    def check(self, name: str) -> None:
        """UntrustedError unless the file is one that could be read here: for those who hand its path to a library."""
        os.close(self._open_file(name))

    def check_all(self) -> None:
        """UntrustedError unless each file in it, and in folders in it, is one that could be read here: for those who
        hand its path to a library."""
        for entry in os.scandir(self.path):
            with contextlib.suppress(FileNotFoundError):  # another process's, just renamed or removed
                if entry.is_dir(follow_symlinks=False):
                    with open_folder(self.path, (entry.name,), uid=self._uid) as inner:
                        inner.check_all()
                else:
                    os.close(self._open_file(entry.name))

    def _open_file(self, name: str) -> int:
        try:
            fd = os.open(self._at(name), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FILE, dir_fd=self._fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UntrustedError(f"{self.path / name} is a link, which edgerun did not make: delete it") from error
        try:
            said = os.fstat(fd)
            if not stat.S_ISREG(said.st_mode):
                raise UntrustedError(f"{self.path / name} is not a file: delete it")
            if self._fd is not None:
                _check(said, self.path / name, self._uid)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _at(self, name: str) -> str:
        return name if self._fd is not None else str(self.path / name)


def open_folder(root: Path, names: Sequence[str] = (), *, make: bool = False, uid: int | None = None) -> Folder:
    """The folder root/names... `root`: of all that is kept; links may lead to it, not from it. `make`: whatever is
    missing, for this user alone. `uid`: whose (default: this process's). OSError, UntrustedError."""
    at = root.absolute()
    path = at.joinpath(*names)
    if not hasattr(os, "getuid") or os.open not in os.supports_dir_fd:
        if make:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Folder(path, None, 0)
    uid = os.geteuid() if uid is None else uid
    fd = _walk(at, make, uid)
    try:
        _check(os.fstat(fd), at, uid)  # again: as the root of the cache it may not even be sticky
        for name in names:
            at /= name
            fd = _step(fd, name, at, make)
            _check(os.fstat(fd), at, uid)
    except BaseException:
        os.close(fd)
        raise
    return Folder(path, fd, uid)


def check_beside(path: Path, model: Path) -> None:
    """UntrustedError unless everybody who can have written the file `path` could have written `model`, to which it
    lies next, or is this user or root. OSError when one is not there."""
    if not hasattr(os, "getuid"):
        return
    of_model = model.stat()
    for said in (path.lstat(), path.stat()):  # who made a link decides what is read
        others = stat.S_IMODE(said.st_mode) & _OTHERS_MAY_WRITE & ~of_model.st_mode
        if said.st_uid not in (0, os.geteuid(), of_model.st_uid):
            raise UntrustedError(f"{path} belongs to user {said.st_uid}, who does not own {model.name}: delete it")
        if others and not stat.S_ISLNK(said.st_mode):
            raise UntrustedError(f"others may write {path}, but not {model.name}: delete it and make it again")


def _walk(path: Path, make: bool, uid: int) -> int:
    """A descriptor of `path`, reached through folders and links that nobody else can exchange."""
    at, rest = _begin(path)
    fd, links = _open_start(at), 0
    try:
        _check(os.fstat(fd), at, uid, sticky=True)
        while rest:
            name, rest = rest[0], rest[1:]
            said = _link(fd, name)
            if said is None:
                fd, at = _step(fd, name, at / name, make), at / name
            else:
                _check_owner(said, at / name, uid)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                target = Path(os.readlink(name, dir_fd=fd))
                if target.is_absolute():
                    at, onward = _begin(target)
                    before, fd = fd, _open_start(at)
                    os.close(before)
                else:
                    onward = list(target.parts)
                rest = [*onward, *rest]
            _check(os.fstat(fd), at, uid, sticky=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_start(path: Path) -> int:
    return os.open(path, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))


def _begin(path: Path) -> tuple[Path, list[str]]:
    """Where the walk to an absolute path begins, and the names from there."""
    try:
        home = Path.home()
    except RuntimeError:  # nobody knows one
        home = Path(path.anchor)
    start = home if home.is_absolute() and path.is_relative_to(home) else Path(path.anchor)
    return start, list(path.relative_to(start).parts)


def _link(fd: int, name: str) -> os.stat_result | None:
    """Of an entry that is a link; None for any other, and where there is none."""
    try:
        said = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return said if stat.S_ISLNK(said.st_mode) else None


def _step(fd: int, name: str, path: Path, make: bool) -> int:
    """The folder `name` in the folder `fd`, which is closed."""
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
        inner = os.open(name, _FOLDER, dir_fd=fd)
    except OSError as error:
        if _link(fd, name) is not None:
            raise UntrustedError(f"{path} is a link, which edgerun did not make: delete it") from error
        raise
    os.close(fd)
    return inner


def _check(said: os.stat_result, path: Path, uid: int, *, sticky: bool = False) -> None:
    _check_owner(said, path, uid)
    if said.st_mode & _OTHERS_MAY_WRITE and not (sticky and said.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(said.st_mode)
        raise UntrustedError(f"others may write {path} (mode {mode:04o}); if it is to be yours alone: chmod go-w")


def _check_owner(said: os.stat_result, path: Path, uid: int) -> None:
    if said.st_uid not in (0, uid):
        raise UntrustedError(f"{path} belongs to user {said.st_uid}, and this is user {uid}")
