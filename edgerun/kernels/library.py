"""Kernels from a shared library that was built ahead of time (`native/`): nothing is compiled or linked at start.

A library serves one platform and one instruction set; its name says which. It is found beside the package, where a
wheel put it, or in the cache directory, where `python -m native.build` can. It shows a table (`edgerun_library`, see
`native/header.py`) with the instruction set, a digest for each kernel of all that its code depends on, and its address.
A kernel whose digest is not this package's is not used: one library may serve several versions in part.

Loading a library runs code, so it is loaded only where nobody can have written it but who could as well have written
the package that loads it (beside the package), or this user and root (in the cache).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import FormatError
from edgerun.paths import kept_folder
from edgerun.trust import check_beside

TABLE = "edgerun_library"  # the symbol
ABI_VERSION = 3  # of the table, of kernels' arguments and of how packed weights lie
BESIDE = Path(__file__).with_name("libs")
_MOST_KERNELS = 4096
_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}


class _Entry(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("digest", ctypes.c_char_p), ("address", ctypes.c_void_p)]


class _Table(ctypes.Structure):
    _fields_ = [
        ("abi_version", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("isa", ctypes.c_char_p),
        ("built", ctypes.c_char_p),
        ("kernels", ctypes.POINTER(_Entry)),
    ]


@dataclass(frozen=True)
class KernelLibrary:
    """A loaded library. `addresses`: of kernels by name, each with its digest. `built`: with what, for which target."""

    path: Path
    isa: str
    built: str
    addresses: dict[str, tuple[str, int]]

    def address(self, name: str, digest: str) -> int | None:
        """Of a kernel, if the library has it just as this package would compile it."""
        known, address = self.addresses.get(name, ("", 0))
        return address if known == digest else None


def platform_name() -> str:
    """Of this process, as libraries are named: "x86_64-linux", "aarch64-android", "arm64-macos", ... Linux is one
    platform whatever its C library: kernels need none."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    if sys.platform == "darwin":
        return f"{machine.replace('aarch64', 'arm64')}-macos"
    machine = machine.replace("arm64", "aarch64")
    if sys.platform == "android" or hasattr(sys, "getandroidapilevel"):
        return f"{machine}-android"
    return f"{machine}-{ {'win32': 'windows', 'linux': 'linux'}.get(sys.platform, sys.platform) }"


def library_name(isa: str, target: str | None = None) -> str:
    """The name of the file with the kernels of an instruction set. target: a `platform_name` (default: this one)."""
    target = target or platform_name()
    system = {"macos": "darwin", "windows": "win32"}.get(target.partition("-")[2], "")
    return f"libedgerun-{target}-{isa}{_SUFFIXES.get(system, '.so')}"


def find_library(isa: str, cache: Path) -> KernelLibrary | None:
    """The library of `isa` beside the package, else in the folder `cache`; None where neither has one. FormatError for
    one that is none of ours, UntrustedError where others can have written it: nothing of it is used."""
    name = library_name(isa)
    if (BESIDE / name).is_file():
        check_beside(BESIDE, Path(__file__).parent)
        check_beside(BESIDE / name, Path(__file__))
        return load_library(BESIDE / name, isa)
    if (cache / name).is_file():
        with kept_folder(cache) as folder:
            folder.check(name)
            return load_library(folder.path / name, isa)
    return None


def load_library(path: Path, isa: str) -> KernelLibrary:
    """Of a file that is trusted. FormatError unless it is a library of ours for this platform and `isa`."""
    try:
        loaded = ctypes.CDLL(str(path))
        table = _Table.in_dll(loaded, TABLE)
    except (OSError, ValueError) as error:  # not a library for this processor; without our table
        raise FormatError(f"{path} is no kernel library for this system: {error}") from error
    if table.abi_version != ABI_VERSION or not 0 <= table.count <= _MOST_KERNELS:
        raise FormatError(f"{path} is for another edgerun (its version is {table.abi_version}, not {ABI_VERSION})")
    if table.isa.decode() != isa:
        raise FormatError(f"{path} has kernels for {table.isa.decode()}, not for {isa}, as its name says")
    kernels = [table.kernels[i] for i in range(table.count)]
    addresses = {each.name.decode(): (each.digest.decode(), each.address or 0) for each in kernels}
    return KernelLibrary(path, isa, table.built.decode(), addresses)
