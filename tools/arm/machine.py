"""A 64-bit ARM machine to run tests on: Debian's Python and PyPI's wheels for it, under qemu's user emulation.

An instruction that the emulated processor lacks ends the process, as on the real one, and the auxiliary vector says
what it has. Nothing is installed on this machine but the emulator, and that only where root may.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRIPLE, CPU = "aarch64-unknown-linux-gnu", "generic"  # what LLVM says there, whatever qemu emulates
_PACKAGES = ("python3", "libstdc++6")  # Debian's
_WHEELS = (
    *("numpy", "psutil", "pyyaml", "click", "tokenizers", "jinja2", "rich", "prompt_toolkit", "platformdirs"),
    *("huggingface_hub", "filelock", "pytest", "pytest-xdist", "hypothesis", "gguf"),
)
_MANYLINUX = (*(f"manylinux_2_{minor}_aarch64" for minor in (36, 35, 34, 31, 28, 27, 17)), "manylinux2014_aarch64")
_READY = "ready"  # a file: the set-up went through


class MissingError(Exception):
    """What this machine lacks to emulate another one."""


@dataclass(frozen=True)
class Machine:
    """A folder with a root file system (`root`), wheels (`site`) and a home directory (`home`)."""

    folder: Path

    def run(self, cpu: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Python with `arguments` on a processor that qemu knows, in the project's root; what it writes is kept."""
        root = self.folder / "root"
        environment = {
            "HOME": str(self.folder / "home"),
            "PATH": os.environ["PATH"],
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": f"{self.folder / 'site'}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",  # beside the sources, where the version might be another
        }
        # By its own loader: with qemu's `-L`, paths that both file systems have would lead to that one.
        libraries = ":".join(str(root / name / "aarch64-linux-gnu") for name in ("lib", "usr/lib"))
        loader = [str(root / "lib/ld-linux-aarch64.so.1"), "--library-path", libraries]
        command = [emulator(), "-cpu", cpu, *loader, str(root / "usr/bin/python3"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=check)


def emulator() -> str:
    """qemu's program. MissingError where there is none and none can be installed."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if path := shutil.which(name):
            return path
    if os.geteuid() or not shutil.which("apt-get"):
        raise MissingError("qemu-aarch64 is not installed (apt-get install qemu-user-static)")
    _do("apt-get", "update", "-qq")
    _do("apt-get", "install", "-y", "-qq", "--no-install-recommends", "qemu-user-static")
    return emulator()


def set_up(folder: Path) -> Machine:
    """The machine in `folder`, made where it is not there: 30 s, 300 MB. MissingError where it cannot be."""
    emulator()
    wanted = f"llvmlite {version('llvmlite')}\n{' '.join(_WHEELS)}\n"
    ready = folder / _READY
    if not ready.is_file() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "home").mkdir(parents=True, mode=0o700)
        _debian(folder)
        _wheels(folder)
        ready.write_text(wanted)
    return Machine(folder)


def _debian(folder: Path) -> None:
    """Packages by an apt of its own: this machine does not learn of a second architecture."""
    apt, root = folder / "apt", folder / "root"
    for each in (root, apt / "state/lists/partial", apt / "cache/archives/partial"):
        each.mkdir(parents=True)
    (apt / "state/status").touch()
    suite, archive = _archive()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {archive} {suite} main\n")
    options = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "state/status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/none",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
    }
    command = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _do(*command, "update")
    _do(*command, "install", "-y", "--download-only", *_PACKAGES)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _do("dpkg", "-x", str(package), str(root))


def _archive() -> tuple[str, str]:
    """This machine's Debian and where it gets it from."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
        names = dict(line.split("=", 1) for line in lines if "=" in line)
        if names["ID"] != "debian":
            raise MissingError("this set-up knows Debian's archive only")
        targets = _do("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages")
    except (OSError, KeyError) as error:
        raise MissingError("this is no Debian") from error
    suite = names["VERSION_CODENAME"]
    for line in sorted(targets.splitlines()):
        codename, _, archive = line.partition(" ")
        if codename == suite and "debian" in archive:
            return suite, archive
    raise MissingError(f"apt knows no archive of {suite}")


def _wheels(folder: Path) -> None:
    python = sorted((folder / "root/usr/bin").glob("python3.[0-9]*"))[0].name.removeprefix("python")
    platforms = [word for name in _MANYLINUX for word in ("--platform", name)]
    abis = [word for name in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", name)]
    _do(
        *("python3", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder / "site")),
        *(*platforms, *abis, "--python-version", python, "--implementation", "cp", "--only-binary=:all:"),
        *(*_WHEELS, f"llvmlite=={version('llvmlite')}"),
    )


def _do(*command: str) -> str:
    """Its output. MissingError with what it said when it fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no word"]
        raise MissingError(f"{' '.join(command[:2])} ...: {said[-1]}") from error
    return done.stdout
