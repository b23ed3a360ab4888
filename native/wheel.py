"""A wheel for one platform with its kernel libraries inside: `python -m native.wheel --libs dist/libs`.

The plain wheel of this tree, as pip builds it, with `edgerun/kernels/libs/`, other tags and, where asked, without
requirements that have no wheels on the platform.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from edgerun.errors import EdgerunError, NotFoundError
from edgerun.kernels.library import library_name
from native.targets import TARGETS, Target, host_target

_ROOT = Path(__file__).parents[1]


def build_wheel(target: Target, libs: Path, output: Path, without: Collection[str] = ()) -> Path:
    """The wheel with all of `libs` that are the target's, in the folder `output`; returns its path. without: names of
    required packages to leave out. NotFoundError when there is no library."""
    libraries = sorted(libs.glob(library_name("*", target.platform)))
    if not libraries:
        raise NotFoundError(f"no library for {target.name} in {libs}; python -m native.build makes them")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", work, str(_ROOT)]
        subprocess.run(command, check=True)
        (plain,) = Path(work).glob("*.whl")
        made = output / plain.name.replace("-any.whl", f"-{target.wheel}.whl")
        with zipfile.ZipFile(plain) as source:
            write_wheel(source, libraries, made, target.wheel, without)
    return made


def write_wheel(
    source: zipfile.ZipFile, libraries: Sequence[Path], made: Path, platforms: str, without: Collection[str]
) -> None:
    """A wheel's files, changed where the platform shows, and the libraries."""
    files = {name: source.read(name) for name in source.namelist() if not name.endswith(("/", "/RECORD"))}
    (info,) = {name.partition("/")[0] for name in files if name.partition("/")[0].endswith(".dist-info")}
    tags = "".join(f"Tag: py3-none-{each}\n" for each in platforms.split("."))
    head = re.sub(r"(?m)^(Root-Is-Purelib|Tag):.*\n", "", files[f"{info}/WHEEL"].decode()).rstrip("\n")
    files[f"{info}/WHEEL"] = f"{head}\nRoot-Is-Purelib: false\n{tags}".encode()
    metadata = files[f"{info}/METADATA"].decode()
    for package in without:
        metadata = re.sub(rf"(?mi)^Requires-Dist: {re.escape(package)}(?![\w.-])(?!.*extra ==).*\n", "", metadata)
    files[f"{info}/METADATA"] = metadata.encode()
    files |= {f"edgerun/kernels/libs/{each.name}": each.read_bytes() for each in libraries}
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m native.wheel", description="A wheel that carries libraries.")
    parser.add_argument("--target", choices=TARGETS, help="the platform (default: this one)")
    parser.add_argument("--libs", type=Path, default=Path("dist/libs"), help="where they are (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="a folder (default: %(default)s)")
    parser.add_argument("--without", nargs="+", default=[], help="required packages without wheels on the platform")
    arguments = parser.parse_args()
    try:
        target = TARGETS[arguments.target or host_target()]
        print(build_wheel(target, arguments.libs, arguments.output, arguments.without))
    except EdgerunError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
