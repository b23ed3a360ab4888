"""Wheels that carry libraries: a plain wheel, changed where the platform shows."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from edgerun.errors import NotFoundError
from native.targets import TARGETS
from native.wheel import build_wheel, write_wheel

PLAIN = {
    "edgerun/__init__.py": "",
    "edgerun-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "edgerun-1.dist-info/METADATA": (
        "Name: edgerun\nRequires-Dist: numpy>=2.0\nRequires-Dist: numba>=0.61; sys_platform != 'ios'\n"
        'Requires-Dist: numba-extra\nRequires-Dist: onnx>=1; extra == "all"\n'
    ),
    "edgerun-1.dist-info/RECORD": "stale",
}


@pytest.fixture
def made(tmp_path: Path) -> zipfile.ZipFile:
    with zipfile.ZipFile(tmp_path / "plain.whl", "w") as plain:
        for name, text in PLAIN.items():
            plain.writestr(name, text)
    library = tmp_path / "libedgerun-x86_64-linux-avx2.so"
    library.write_bytes(b"code")
    target = tmp_path / "made.whl"
    with zipfile.ZipFile(tmp_path / "plain.whl") as plain:
        write_wheel(plain, [library], target, "manylinux_2_17_x86_64.musllinux_1_1_x86_64", ["numba", "onnx"])
    return zipfile.ZipFile(target)


def test_the_library_is_inside_and_every_file_is_recorded(made: zipfile.ZipFile):
    assert made.read("edgerun/kernels/libs/libedgerun-x86_64-linux-avx2.so") == b"code"
    record = dict(line.split(",", 1) for line in made.read("edgerun-1.dist-info/RECORD").decode().splitlines())
    assert set(record) == set(made.namelist())
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"code").digest()).rstrip(b"=").decode()
    assert record["edgerun/kernels/libs/libedgerun-x86_64-linux-avx2.so"] == f"sha256={digest},4"


def test_tags_are_the_platforms(made: zipfile.ZipFile):
    assert made.read("edgerun-1.dist-info/WHEEL").decode().splitlines() == [
        "Wheel-Version: 1.0",
        "Root-Is-Purelib: false",
        "Tag: py3-none-manylinux_2_17_x86_64",
        "Tag: py3-none-musllinux_1_1_x86_64",
    ]


def test_requirements_are_left_out_where_asked_and_no_others(made: zipfile.ZipFile):
    left = made.read("edgerun-1.dist-info/METADATA").decode()
    assert "Requires-Dist: numba>=" not in left
    assert "numpy>=2.0" in left and "numba-extra" in left and 'extra == "all"' in left


def test_without_a_library_there_is_no_such_wheel(tmp_path: Path):
    with pytest.raises(NotFoundError, match="native.build"):
        build_wheel(TARGETS["x86_64-linux-gnu"], tmp_path, tmp_path)
