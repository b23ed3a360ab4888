"""Files appear whole or not at all, whoever else writes, is stopped or is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgerun import new_files
from edgerun.errors import EdgerunError, UsageError
from edgerun.new_files import new_file, one_at_a_time, remove_abandoned, resumed_file, temporary_folder
from edgerun.paths import replace_file

_WRITER = """
import sys, time
from pathlib import Path
from edgerun.new_files import new_file, resumed_file, temporary_folder
make = {"new": new_file, "resumed": resumed_file, "folder": temporary_folder}[sys.argv[1]]
with make(Path(sys.argv[2])) as made:
    if sys.argv[1] == "folder":
        (made / "inside").write_bytes(bytes(1000))
    else:
        made.write(b"theirs")
        made.flush()
    print("here", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def writer(kind: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of its work; it goes on when it is told a line."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(new_files.__file__).parents[1],
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"here\n"
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def names(folder: Path) -> list[str]:
    return sorted({each.name for each in folder.iterdir()} - {"home"})


def test_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, [b"one", b"two"])
    assert path.read_bytes() == b"onetwo" and path.stat().st_mode & 0o777 == 0o600

    def refuse(written: Path) -> None:
        assert written.read_bytes() == b"other", "what is checked is whole"
        raise EdgerunError("not that")

    for error in (ValueError, KeyboardInterrupt, OSError):
        with pytest.raises(error), new_file(path) as file:
            file.write(b"other")
            raise error
    with pytest.raises(EdgerunError, match="not that"), new_file(path, check=refuse) as file:
        file.write(b"other")
    assert path.read_bytes() == b"onetwo" and names(tmp_path) == ["file"]
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="not a file"), new_file(name):
            pass
    long = tmp_path / ("n" * 250)
    replace_file(long, [b"x"])
    assert long.read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["new", "folder"])
def test_what_killed_ones_left_goes_and_what_is_at_work_stays(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "file" if kind == "new" else tmp_path
    with writer(kind, target) as killed, writer(kind, target) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(names(tmp_path)) == 2
        replace_file(tmp_path / "mine", [b"mine"])
        assert len(names(tmp_path)) == 2, "mine, and that of the stopped one"
        stopped.send_signal(signal.SIGCONT)
        stopped.communicate(b"\n", timeout=20)
        assert stopped.returncode == 0
    assert names(tmp_path) == (["file", "mine"] if kind == "new" else ["mine"])


def test_a_stopped_writer_cannot_touch_what_another_finished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writer("new", path) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        with new_file(path) as file:
            file.write(b"mine")
        before = path.stat().st_ino
        assert path.read_bytes() == b"mine"
        stopped.send_signal(signal.SIGCONT)
        stopped.communicate(b"\n", timeout=20)
        assert path.read_bytes() == b"theirs" and path.stat().st_ino != before, "renamed over, not written into"


def test_only_one_goes_on_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writer("resumed", path) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        with pytest.raises(EdgerunError, match="another edgerun is writing it"), resumed_file(path):
            pass
        stopped.kill()
        stopped.wait()
        with resumed_file(path) as file:
            assert file.read() == b"theirs"
    path.unlink()
    with resumed_file(path) as file:
        assert file.read() == b""


def test_without_locks_no_file_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_files, "_lock", lambda fd: None)
    path = tmp_path / "file"
    with resumed_file(path) as first:
        first.write(b"first")
        with resumed_file(path) as second:
            assert second.read() == b""
            first.write(b" goes on")
            first.flush()
            assert path.read_bytes() == b""
    left = tmp_path / ".x.0123456789abcdef.edgerun-tmp"
    left.touch()
    replace_file(tmp_path / "mine", [b"mine"])
    assert left.exists(), "nobody knows whose it is"


def test_names_that_are_not_ours_stay(tmp_path: Path) -> None:
    strange = [".a.part", "b.edgerun-part", ".c.0123.edgerun-tmp", "d.0123456789abcdef.edgerun-tmp"]
    for name in strange:
        (tmp_path / name).touch()
    (tmp_path / ".e.0123456789abcdef.edgerun-tmp").symlink_to(tmp_path / ".a.part")
    remove_abandoned(tmp_path)
    assert set(strange) < set(names(tmp_path)) and len(names(tmp_path)) == 5
    remove_abandoned(tmp_path / "not there")


def test_many_at_once(tmp_path: Path) -> None:
    """Nobody's file is taken for abandoned before it is locked, or after."""
    path, errors = tmp_path / "file", []

    def work(number: int) -> None:
        try:
            for _ in range(40):
                replace_file(path, [bytes([number]) * 5000])
                with temporary_folder(tmp_path) as folder:
                    (folder / "x").touch()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 5000 and len(set(content)) == 1
    assert not errors and names(tmp_path) == ["file"]


def test_one_at_a_time(tmp_path: Path) -> None:
    path, said, order, begun = tmp_path / "new" / "made", list[str](), list[str](), threading.Event()

    def first() -> None:
        with one_at_a_time(path, lambda: said.append("first"), wait_s=20):
            begun.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(20)
    with (
        pytest.raises(EdgerunError, match="another edgerun is making it"),
        one_at_a_time(path, lambda: said.append("refused"), wait_s=0),
    ):
        pass
    with one_at_a_time(path, lambda: said.append("second"), wait_s=20):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and said == ["refused", "second"]


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    (tmp_path / "in the way").touch()
    return tmp_path / "in the way" / "made"


def test_without_a_folder_there_is_no_lock(unwritable: Path) -> None:
    waited: list[Callable[[], None]] = []
    with one_at_a_time(unwritable, lambda: waited.append(print), wait_s=0):
        assert not waited
