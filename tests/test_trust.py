"""Who may have written what edgerun believes: every way to a file, and every file that is believed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from edgerun import paths
from edgerun.errors import FormatError, UntrustedError
from edgerun.events import Notice
from edgerun.planning.rates import ProductRates, Rates, load_rates, save_rates
from edgerun.trust import check_beside, open_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="a system without owners and modes")


@pytest.fixture
def tree(user_home: Path) -> Path:
    """home/a/b/c/file, of this user alone."""
    folder = user_home / "a" / "b" / "c"
    for each in reversed([folder, *folder.parents[:2]]):
        each.mkdir(mode=0o700)
    (folder / "file").write_bytes(b"content")
    (folder / "file").chmod(0o600)
    return folder


def read(tree: Path, uid: int | None = None) -> bytes:
    with open_folder(tree.parents[1], ("b", "c"), uid=uid) as folder:
        return folder.read("file")


def test_what_is_this_users_alone_is_read(tree: Path):
    assert read(tree) == b"content"
    for path in (tree / "file", tree, tree.parent):
        path.chmod(0o755 if path.is_dir() else 0o644)
        assert read(tree) == b"content", "others may read"


@pytest.mark.parametrize("depth", range(5), ids=["file", "c", "b", "a", "home"])
@pytest.mark.parametrize("mode", [0o002, 0o020, 0o022, 0o1002, 0o1020])
def test_what_others_may_write_is_not(tree: Path, depth: int, mode: int):
    path = [tree / "file", tree, tree.parent, *tree.parents[1:]][depth]
    path.chmod(0o700 | mode)
    if depth == 4 and mode & 0o1000:  # like /tmp: entries are their owners'
        assert read(tree) == b"content"
    else:
        with pytest.raises(UntrustedError, match="others may write"):
            read(tree)


def test_what_another_user_owns_is_not(tree: Path):
    uid = os.getuid() + 1 if os.getuid() else None
    if uid is None:  # root: its files are everybody's to trust, so some are given away
        for path in (tree / "file", tree, tree.parent, tree.parents[1], tree.parents[2]):
            os.chown(path, 12345, -1)
            with pytest.raises(UntrustedError, match="belongs to user 12345"):
                read(tree)
            os.chown(path, 0, -1)
        return
    with pytest.raises(UntrustedError, match="belongs to user"):
        read(tree, uid)


def test_a_home_of_another_user(tree: Path):
    """`sudo` with the caller's HOME: root believes nothing in it."""
    with pytest.raises(UntrustedError) if os.getuid() else pytest.raises(AssertionError):
        assert read(tree, uid=0) != b"content"  # root's own files when this is root


@pytest.mark.parametrize("name", ["file", "c", "b"])
def test_links_in_the_cache_are_not_followed(tree: Path, name: str):
    path = {"file": tree / "file", "c": tree, "b": tree.parent}[name]
    path.rename(path.with_name("real"))
    path.symlink_to("real")
    with pytest.raises(UntrustedError, match="is a link"):
        read(tree)


@pytest.mark.parametrize("absolute", [False, True])
def test_links_to_the_cache_are_followed_where_nobody_else_made_them(tree: Path, absolute: bool):
    a = tree.parents[1]
    a.rename(a.with_name("real"))
    a.symlink_to(a.with_name("real") if absolute else Path("..") / "home" / "real")
    assert read(tree) == b"content"
    a.with_name("real").chmod(0o777)
    with pytest.raises(UntrustedError, match="others may write"):
        read(tree)
    a.with_name("real").chmod(0o700)
    a.unlink()
    a.symlink_to(a)
    with pytest.raises(OSError, match="[Ll]inks"):
        read(tree)


def test_outside_the_home_every_folder_from_the_root_counts(tmp_path: Path, tree: Path):
    folder = tmp_path / "elsewhere"
    folder.mkdir(mode=0o700)
    open_folder(folder).close()
    tmp_path.chmod(0o777)
    with pytest.raises(UntrustedError, match="others may write"):
        open_folder(folder)
    assert read(tree) == b"content", "as far as from the home directory"
    tmp_path.chmod(0o700)


def test_what_is_no_file_is_not_read_and_not_waited_for(tree: Path):
    (tree / "file").unlink()
    os.mkfifo(tree / "file", 0o600)
    with pytest.raises(UntrustedError, match="not a file"):
        read(tree)
    (tree / "file").unlink()
    (tree / "file").mkdir(mode=0o700)
    with pytest.raises(UntrustedError, match="not a file"):
        read(tree)


def test_a_file_larger_than_it_can_be(tree: Path):
    with open_folder(tree) as folder, pytest.raises(FormatError, match="more than the 3 bytes"):
        folder.read("file", 3)


def test_folders_exchanged_while_they_are_walked(tree: Path, tmp_path: Path):
    """Never the other folder's content, whatever a thread that may write above does meanwhile."""
    planted = tmp_path / "planted" / "c"
    planted.mkdir(parents=True)
    (planted / "file").write_bytes(b"planted")
    planted.chmod(0o777)
    stop = threading.Event()
    aside = tree.with_name("aside")

    def exchange() -> None:
        while not stop.is_set():
            tree.rename(aside)
            tree.symlink_to(planted)
            tree.unlink()
            aside.rename(tree)
            time.sleep(0.0003)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = set()
    try:
        for turn in range(50_000):
            if turn > 1000 and b"content" in seen and len(seen) > 1:
                break
            try:
                seen.add(read(tree))
            except OSError as error:
                seen.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert b"content" in seen
    assert len(seen) > 1, "it was exchanged meanwhile"
    assert b"planted" not in seen


def test_nothing_stays_open(tree: Path):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for spoilt in (None, tree / "file", tree, tree.parent, tree.parents[2]):
        if spoilt is not None:
            spoilt.chmod(0o777)
        for _ in range(3):
            try:
                read(tree)
            except UntrustedError:
                assert spoilt is not None
        if spoilt is not None:
            spoilt.chmod(0o700)
    with pytest.raises(FileNotFoundError):
        open_folder(tree, ("absent",))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_all_of_a_folder(tree: Path):
    """For libraries that open files by name: anything below that others may write spoils it."""
    above = tree.parents[1]

    def check() -> None:
        with open_folder(above) as folder:
            folder.check_all()

    check()
    for path in (tree / "file", tree, tree.parent):
        path.chmod(0o777)
        with pytest.raises(UntrustedError, match="others may write"):
            check()
        path.chmod(0o700)
    (tree / "link").symlink_to("file")
    with pytest.raises(UntrustedError, match="is a link"):
        check()


def test_a_crash_while_writing_leaves_the_old_file(tree: Path):
    def pieces():
        yield b"half"
        raise KeyboardInterrupt

    with open_folder(tree) as folder, pytest.raises(KeyboardInterrupt):
        folder.replace("file", pieces())
    assert read(tree) == b"content"
    assert [path.name for path in tree.iterdir()] == ["file"]


RATES = Rates({"Q4_0": ProductRates(1e10, 1e11)}, 1e9, 4096)


def test_rates_that_others_can_have_written_are_measured_again(user_home: Path):
    path = paths.cache_dir() / "rates-x.json"
    save_rates(path, RATES)
    events = []
    assert load_rates(path, events.append) == RATES
    path.chmod(0o666)
    assert load_rates(path, events.append) is None
    assert [isinstance(event, Notice) and "others may write" in event.text for event in events] == [True]


def test_a_pack_file_is_believed_as_far_as_its_model(tmp_path: Path):
    model, pack = tmp_path / "m.gguf", tmp_path / "m.gguf.edgepack"
    for path in (model, pack):
        path.write_bytes(b"")
        path.chmod(0o644)
    check_beside(pack, model)
    pack.chmod(0o664)
    with pytest.raises(UntrustedError, match="others may write"):
        check_beside(pack, model)
    model.chmod(0o664)
    check_beside(pack, model)
    if os.getuid() == 0:
        os.chown(pack, 12345, -1)
        with pytest.raises(UntrustedError, match="belongs to user 12345"):
            check_beside(pack, model)
        os.chown(model, 12345, -1)
        check_beside(pack, model)
