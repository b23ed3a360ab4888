"""Libraries of kernels: built, described in C, taken where they fit, refused where they do not."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from edgerun import paths
from edgerun.errors import UnsupportedError, UsageError
from edgerun.events import Event, Notice
from edgerun.kernels import abi, compile, library
from edgerun.kernels.attention_abi import AttentionDecode, AttentionPrompt
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.isa import ISAS
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.library import ABI_VERSION, library_name
from native.build import build_library
from native.header import c_header
from native.targets import TARGETS, host_target, link_command

ISA = ISAS["portable"]
NAMES = ("add", "pack_q8_0", "quantize_q8", "matmul_q8_0")
ROOT = Path(__file__).parents[2]
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of a few portable kernels for this machine, and its header beside it."""
    folder = tmp_path_factory.mktemp("libs")
    try:
        path = build_library(TARGETS[host_target()], ISA, folder, NAMES)
    except UsageError as error:
        pytest.skip(f"no library can be built here: {error}")
    (folder / "edgerun_kernels.h").write_text(c_header(NAMES))
    return path


@pytest.fixture
def beside(built: Path, user_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library beside a package; returns its path."""
    package = user_home / "package"
    package.mkdir(mode=0o755)
    (package / "library.py").write_text("")
    (package / "libs").mkdir(mode=0o755)
    monkeypatch.setattr(library, "__file__", str(package / "library.py"))
    monkeypatch.setattr(library, "BESIDE", package / "libs")
    shutil.copy(built, package / "libs")
    return package / "libs" / built.name


@pytest.fixture
def empty(user_home: Path) -> Path:
    """A cache without kernels."""
    return paths.cache_dir() / "none"


def add_works(address: int) -> bool:
    x, y = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
    arguments = np.frombuffer(abi.packed(abi.Add(x.ctypes.data, y.ctypes.data, 3, 0, 12)), np.int64)
    _KERNEL(address)(arguments.ctypes.data, 0, 1)
    return bool(x.tolist() == [11, 22, 33])


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_kernels_come_from_the_library(beside: Path, empty: Path):
    events: list[Event] = []
    cache = KernelCache(ISA, empty, events.append)
    cache.prepare(NAMES)
    assert cache.missing([*NAMES, "rope"]) == ["rope"]
    assert not events and not cache.compiled and not empty.exists()
    assert add_works(cache.address("add"))
    assert str(beside) in cache.origin and "4 from" in cache.origin and "llvmlite" in cache.origin


def test_what_the_library_lacks_is_compiled(beside: Path, empty: Path):
    cache = KernelCache(ISA, empty)
    cache.prepare(["add", "rope"])
    assert cache.compiled == ["rope"]
    assert "1 from" in cache.origin and "1 compiled now" in cache.origin
    assert [path.name.split("-")[0] for path in empty.iterdir()] == ["rope"]


def test_a_library_in_the_cache_is_taken(built: Path, user_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "BESIDE", user_home / "nothing")
    folder = paths.cache_dir() / "mine"
    folder.mkdir(mode=0o700)
    shutil.copy(built, folder)
    assert add_works(KernelCache(ISA, folder).library.address("add", compile.kernel_digest("add", ISA)))  # type: ignore[union-attr, arg-type]
    folder.chmod(0o777)
    events: list[Event] = []
    assert KernelCache(ISA, folder, events.append).library is None
    assert "others may write" in notices(events)[0]


def test_a_library_of_other_sources_serves_nothing(beside: Path, empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile, "sources_digest", lambda: "an older edgerun")
    cache = KernelCache(ISA, empty)
    assert cache.library is not None
    assert cache.missing(NAMES) == list(NAMES)


def _flip(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.unlink()  # a loaded library must not change
    path.write_bytes(content.replace(old, new))


def _foreign(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"\x7fELF, not really")


def _of_another_version(path: Path) -> None:
    head = ABI_VERSION.to_bytes(8, "little") + len(NAMES).to_bytes(8, "little")
    _flip(path, head, (99).to_bytes(8, "little") + head[8:])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no library": (_foreign, "no kernel library for this system"),
    "another version": (_of_another_version, "another edgerun"),
    "another instruction set": (lambda path: _flip(path, b"\0portable\0", b"\0portably\0"), "for portably"),
    "others may write it": (lambda path: path.chmod(0o666), "others may write"),
    "others may write the folder": (lambda path: path.parent.chmod(0o777), "others may write"),
}
if hasattr(os, "getuid") and os.getuid() == 0:
    SPOILT["another user's"] = (lambda path: os.chown(path, 12345, -1), "belongs to user 12345")


@pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)
def test_a_library_that_is_not_ours_is_not_used(beside: Path, empty: Path, spoil: Callable[[Path], object], why: str):
    spoil(beside)
    events: list[Event] = []
    cache = KernelCache(ISA, empty, events.append)
    assert cache.library is None
    assert [why in text for text in notices(events)] == [True], notices(events)
    assert add_works(cache.address("add")), "compiled instead"


def test_any_other_library_is_refused(beside: Path, empty: Path):
    """One of the system's, under our name."""
    import _ctypes

    if not getattr(_ctypes, "__file__", None):
        pytest.skip("this Python has no shared libraries of its own")
    beside.unlink()
    shutil.copy(_ctypes.__file__, beside)
    events: list[Event] = []
    assert KernelCache(ISA, empty, events.append).library is None
    assert "no kernel library" in notices(events)[0]


WITHOUT = """
import sys
from pathlib import Path
for name in ("numba", "llvmlite"):
    sys.modules[name] = None
from edgerun.kernels import library
library.BESIDE = Path(sys.argv[1])
library.__file__ = str(library.BESIDE.parent / "library.py")
from edgerun.errors import UnsupportedError
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.choice import choose
from edgerun.kernels.isa import ISAS
cache = KernelCache(ISAS["portable"], Path(sys.argv[2]))
choose("auto")
cache.prepare(["add"])
assert cache.missing(["add", "rope"]) == ["rope"]
try:
    cache.prepare(["rope", "gated"])
except UnsupportedError as error:
    print(error)
"""


def test_neither_numba_nor_llvmlite_is_needed(beside: Path, empty: Path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(beside.parent), str(empty)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "rope and 1 more must be compiled" in done.stdout
    assert "pip install numba llvmlite" in done.stdout and "`reference`" in done.stdout


def test_without_a_compiler_the_error_says_what_to_do(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UnsupportedError, match=r"kernels add must be compiled .*needs numba: pip install numba"):
        KernelCache(ISA, empty).prepare(["add"])


def test_a_c_program_multiplies_through_the_library(built: Path, tmp_path: Path):
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler here (cc, gcc or clang)")
    program, folder = tmp_path / "product", built.parent
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{folder}", str(ROOT / "native" / "product.c")]
    command += [str(built), f"-Wl,-rpath,{folder}", "-lm", "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "portable: 4 kernels" in done.stdout and "largest difference" in done.stdout


def test_halves_convert_as_numpy_does():
    """`native/halves.ll`, where the processor cannot: every half, and floats around each."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    wrappers = """
define void @widen(ptr %to, ptr %from) { %h = load half, ptr %from
 %f = call float @__extendhfsf2(half %h)
 store float %f, ptr %to
 ret void }
define void @narrow(ptr %to, ptr %from) { %f = load float, ptr %from
 %h = call half @__truncsfhf2(float %f)
 store half %h, ptr %to
 ret void }"""
    module = llvm.parse_assembly((ROOT / "native" / "halves.ll").read_text() + wrappers)
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine(jit=True))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
    widen, narrow = (kind(engine.get_function_address(name)) for name in ("widen", "narrow"))
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = np.empty(len(halves), np.float32)
    for i in range(len(halves)):
        widen(wide.ctypes.data + 4 * i, halves.ctypes.data + 2 * i)
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    finite = wide[np.isfinite(wide)]
    steps = (finite.view(np.uint32)[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001], np.uint32)).view(np.float32)
    floats = np.concatenate([steps.ravel()[::7], [np.inf, -np.inf, np.nan, 65519.9, 65520.0, 1e-8, -1e30]])
    floats = floats.astype(np.float32)
    back = np.empty(len(floats), np.float16)
    for i in range(len(floats)):
        narrow(back.ctypes.data + 2 * i, floats.ctypes.data + 4 * i)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(back, floats.astype(np.float16))


def test_every_kernel_has_its_arguments_in_the_header():
    text = c_header()
    for name in SOURCES:
        if name not in abi.POOL:
            assert f"edgerun_kernel edgerun_{name};" in text
            assert abi.slots(abi.arguments_of(name))
    for name in abi.POOL:
        assert f"edgerun_{name}(int64_t control" in text
    assert "    int64_t eps; /* address of an f32 */" in text
    assert len(abi.slots(abi.Product)) == 16


def test_arguments_lie_as_kernels_read_them():
    packed = abi.packed(abi.Rope(*range(1, 8)))
    assert np.frombuffer(packed, np.int64).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert abi.slot_of(abi.KvWrite, "head_dim_v") == 8 and abi.slot_of(abi.WrittenSpan, "rows") == 3
    assert abi.slot_of(AttentionPrompt, "start") == 17 and abi.slot_of(AttentionDecode, "rows") == 11
    for head, listed in abi.LISTED.items():
        assert 8 * len(abi.slots(head)) <= abi.LIST_AT and len(abi.slots(listed)) % 4 == 0


def test_names_say_platform_and_instruction_set():
    assert library_name("avx2", "x86_64-linux") == "libedgerun-x86_64-linux-avx2.so"
    assert library_name("portable", "arm64-macos") == "libedgerun-arm64-macos-portable.dylib"
    assert library_name("avx2", "x86_64-windows") == "libedgerun-x86_64-windows-avx2.dll"


def test_the_distributions_linker_or_zig_or_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    arm = TARGETS["aarch64-linux-gnu"]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name.startswith("aarch64") else None)
    assert link_command(arm, [], tmp_path / "k.so")[0] == "/usr/bin/aarch64-linux-gnu-ld"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("native.targets.find_spec", lambda name: object())
    assert link_command(arm, [], tmp_path / "k.so")[1:5] == ["-m", "ziglang", "cc", "-target"]
    monkeypatch.setattr("native.targets.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="no linker for aarch64-linux-gnu"):
        link_command(arm, [], tmp_path / "k.so")
