"""The limits that a Linux control group (v1 or v2) puts on this process; on other systems there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

NO_LIMIT_BYTES = 1 << 60  # v1 writes a huge number where v2 writes "max"


def controller_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's group and of every group above it that hold `controller`'s files,
    innermost first. `root` is where the file system begins (tests give a made-up one)."""
    for hierarchy, controllers, group in _memberships(root):
        if hierarchy == "0":
            bases = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers:
            bases = [root / "sys/fs/cgroup" / ",".join(controllers), root / "sys/fs/cgroup" / controller]
        else:
            continue
        for base in bases:
            if base.is_dir():
                # In a container the path may be the host's: a folder that is not there is passed over.
                path = PurePosixPath(group.lstrip("/"))
                yield from (base / part for part in (path, *path.parents) if (base / part).is_dir())
                break


def read_number(path: Path) -> int | None:
    """The integer in `path`; None when there is no such file, no limit ("max", "-1") or something else."""
    text = read_text(path)
    try:
        value = int(text)
    except ValueError:
        return None
    return value if 0 <= value < NO_LIMIT_BYTES else None


def read_table(path: Path) -> dict[str, int]:
    """Lines `name number` of a stat file; empty when it cannot be read."""
    table = {}
    for line in read_text(path).splitlines():
        name, _, number = line.partition(" ")
        if number.strip().isdigit():
            table[name] = int(number)
    return table


def read_text(path: Path) -> str:
    """The file's text, or "" when it cannot be read (which here means: no such limit)."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _memberships(root: Path) -> Iterator[tuple[str, list[str], str]]:
    for line in read_text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and ".." not in parts[2].split("/"):
            yield parts[0], parts[1].split(","), parts[2]
