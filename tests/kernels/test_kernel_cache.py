"""The machine-code cache: what is damaged, foreign, not what it should be, or where others may write."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun import paths
from edgerun.errors import FormatError
from edgerun.events import Event, Notice, Progress
from edgerun.kernels import abi, load_kernels
from edgerun.kernels.codegen import link_object
from edgerun.kernels.compile import KernelCache, entry_name, file_name
from edgerun.kernels.isa import ISAS, Isa
from edgerun.kernels.object_file import read_symbols
from tests.kernels.isas import IMPLEMENTATIONS, KERNELS_DIR, needed_kernels

ISA = ISAS["portable"]
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@pytest.fixture
def cache_folder(user_home: Path) -> Path:
    """A cache of two kernels, in a home of its own: nothing in it has a second name elsewhere."""
    folder = paths.cache_dir() / "kernels"
    shutil.rmtree(folder)
    KernelCache(ISA, folder).prepare(["add", "rope"])
    return folder


def add_works(loaded: KernelCache) -> bool:
    """x += y for one row: the slots of the kernel `add`."""
    x, y = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
    arguments = np.frombuffer(abi.packed(abi.Add(x.ctypes.data, y.ctypes.data, 3, 0, 12)), np.int64)
    _KERNEL(loaded.address("add"))(arguments.ctypes.data, 0, 1)
    return x.tolist() == [11, 22, 33]


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def write_kernel(path: Path, code: bytes) -> None:
    """As the cache does, whatever the code is."""
    path.write_bytes(hashlib.sha256(code).digest() + code)


def planted(symbol: str) -> bytes:
    """Code that anybody can make: it does nothing, under a name of the attacker's choice."""
    from numba import int64, void

    def nothing(arguments: int, low: int, high: int) -> None:
        return None

    return link_object(nothing, void(int64, int64, int64), symbol)


def test_a_second_start_compiles_nothing_and_imports_no_numba(cache_folder: Path):
    events: list[Event] = []
    cache = KernelCache(ISA, cache_folder, events.append)
    cache.prepare(["add", "rope"])
    assert add_works(cache)
    assert not events
    code = (
        "import sys; from pathlib import Path; from edgerun.kernels.isa import ISAS; "
        "from edgerun.kernels.compile import KernelCache; "
        "KernelCache(ISAS['portable'], Path(sys.argv[1])).address('add'); "
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(cache_folder)], check=False).returncode == 0


def test_sets_with_as_many_lanes_share_what_is_no_product():
    """Their code would be the same: it is compiled and kept once."""
    wide, narrow, plain = ISAS["avx512"], ISAS["avx2"], ISAS["portable"]
    assert file_name("attention_decode", narrow) == file_name("attention_decode", plain)
    assert file_name("attention_decode", narrow) != file_name("attention_decode", wide)
    for name in ("matmul_q4_0", "dequantize_q4_k"):
        assert len({file_name(name, isa) for isa in (wide, narrow, plain)}) == 3


@pytest.mark.parametrize("isa", IMPLEMENTATIONS, ids=lambda isa: isa.name)
def test_every_object_shows_its_entry_and_nothing_else(isa: Isa):
    cache = KernelCache(isa, KERNELS_DIR)
    names = needed_kernels(isa)
    cache.prepare(names)
    for name in names:
        symbols = read_symbols((KERNELS_DIR / file_name(name, isa)).read_bytes()[32:])
        assert symbols.defined == {entry_name(name, isa)}
        assert symbols.undefined <= {"sched_yield", "clock_gettime"}
    assert len({cache.address(name) for name in names}) == len(set(names))


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[:-1],
        lambda good: bytes(len(good)),
        lambda good: good[:100] + bytes([good[100] ^ 1]) + good[101:],
        lambda good: good + b"x" * (5 << 20),
    ],
    ids=["empty", "cut", "zeros", "a bit", "huge"],
)
def test_damaged_files_are_dropped_with_a_notice(cache_folder: Path, damage: Callable[[bytes], bytes]):
    path = cache_folder / file_name("add", ISA)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    events: list[Event] = []
    assert add_works(KernelCache(ISA, cache_folder, events.append))
    assert [path.name in text for text in notices(events)] == [True]
    assert [event.unit for event in events if isinstance(event, Progress)] == ["kernels", "kernels"]
    assert path.read_bytes() == good, "compiled anew, to the same bytes"


def test_code_that_is_not_what_it_should_be_is_not_linked(cache_folder: Path):
    """Another kernel's file under this one's name, one that defines nothing, one that asks for what it may not call,
    one that is no object: each with a right checksum."""
    path = cache_folder / file_name("add", ISA)
    good = path.read_bytes()
    entry = entry_name("add", ISA)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="static", codemodel="jitdefault")

    def compiled(text: str) -> bytes:
        return machine.emit_object(llvm.parse_assembly(text))

    bad = {
        "another": (cache_folder / file_name("rope", ISA)).read_bytes()[32:],
        "nothing": compiled("@x = private global i64 5"),
        "more": compiled(f"define void @{entry}() {{ ret void }}\ndefine weak void @helper() {{ ret void }}"),
        "asks": compiled(f"declare void @system()\ndefine void @{entry}() {{ call void @system()\nret void }}"),
        "text": b"not an object file",
    }
    for what, code in bad.items():
        write_kernel(path, code)
        events: list[Event] = []
        assert add_works(KernelCache(ISA, cache_folder, events.append)), what
        assert len(notices(events)) == 1, what
        assert path.read_bytes() == good, what


_UNTRUSTED = {
    "file that others may write": lambda folder, file: file.chmod(0o666),
    "file of the group": lambda folder, file: file.chmod(0o620),
    "folder that others may write": lambda folder, file: folder.chmod(0o777),
    "sticky folder": lambda folder, file: folder.chmod(0o1777),
    "folder of the group": lambda folder, file: folder.chmod(0o770),
    "folder above": lambda folder, file: folder.parent.parent.chmod(0o777),
    "home": lambda folder, file: Path.home().chmod(0o757),
    "linked file": lambda folder, file: (file.rename(file.with_name("elsewhere")), file.symlink_to("elsewhere")),
    "linked folder": lambda folder, file: (
        folder.rename(folder.with_name("elsewhere")),
        folder.symlink_to(folder.with_name("elsewhere")),
    ),
}
if hasattr(os, "getuid") and os.getuid() == 0:
    _UNTRUSTED |= {
        "another user's file": lambda folder, file: os.chown(file, 12345, -1),
        "another user's folder": lambda folder, file: os.chown(folder, 12345, -1),
        "another user's cache": lambda folder, file: os.chown(folder.parent.parent, 12345, -1),
        "another user's home": lambda folder, file: os.chown(Path.home(), 12345, -1),  # sudo -E
    }


@pytest.mark.parametrize("spoil", _UNTRUSTED.values(), ids=_UNTRUSTED)
def test_code_that_others_can_have_written_is_not_run(cache_folder: Path, spoil: Callable[[Path, Path], object]):
    path = cache_folder / file_name("add", ISA)
    code = planted(entry_name("add", ISA))
    write_kernel(path, code)
    assert not add_works(KernelCache(ISA, cache_folder)), "this code would be run"
    spoil(cache_folder, path)
    events: list[Event] = []
    cache = KernelCache(ISA, cache_folder, events.append)
    assert add_works(cache)
    cache.prepare(["rope"])
    assert len(notices(events)) == 1, "said once"
    again: list[Event] = []
    assert add_works(KernelCache(ISA, cache_folder, again.append)), "nor at the next start"


def test_a_cache_that_others_may_write_is_left_alone(cache_folder: Path):
    cache_folder.chmod(0o777)
    before = {path.name: path.read_bytes() for path in cache_folder.iterdir()}
    KernelCache(ISA, cache_folder).prepare(["add", "gated"])
    assert {path.name: path.read_bytes() for path in cache_folder.iterdir()} == before


@pytest.mark.skipif(not hasattr(os, "umask"), reason="needs modes")
def test_what_is_made_is_for_this_user_alone_whatever_the_umask(user_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_home / "not" / "yet"))
    before = os.umask(0)
    try:
        KernelCache(ISA, paths.cache_dir() / "kernels").address("add")
    finally:
        os.umask(before)
    made = [user_home / "not", *(user_home / "not").rglob("*")]
    files = [path for path in made if path.is_file()]
    assert {path.suffix for path in files} == {".kernel", ".lock"} and len(files) == 2
    for path in made:
        assert oct(path.stat().st_mode & 0o7777) == ("0o600" if path in files else "0o700")


def test_a_link_that_leads_to_the_cache_is_followed(user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """~/.cache on another disk is this user's own doing."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (user_home / "linked").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_home / "linked"))
    events: list[Event] = []
    assert add_works(KernelCache(ISA, paths.cache_dir() / "kernels", events.append))
    assert not notices(events)
    assert len(list((tmp_path / "disk" / "edgerun" / "kernels").iterdir())) == 1


def test_unwritable_cache_still_runs(tmp_path: Path):
    (tmp_path / "file").write_text("not a directory")
    assert add_works(KernelCache(ISA, tmp_path / "file" / "kernels"))


def test_code_is_given_back_with_the_kernels():
    loaded = load_kernels("auto", threads=2)
    engine = weakref.ref(loaded._cache._engines[0])
    loaded.close()
    del loaded
    gc.collect()
    assert engine() is None


_TRIPLES = {"ELF": "{}-unknown-linux-gnu", "Mach-O": "{}-apple-darwin", "COFF": "{}-pc-windows-msvc"}
_MODULE = """
define private i64 @helper(i64 %x) noinline { %y = mul i64 %x, %x
 ret i64 %y }
define internal i64 @inner(i64 %x) noinline { %y = add i64 %x, 77
 ret i64 %y }
@shown = global i64 5
declare double @sin(double)
define double @entry(i64 %x) { %h = call i64 @helper(i64 %x)
 %i = call i64 @inner(i64 %h)
 %f = bitcast i64 %i to double
 %r = call double @sin(double %f)
 ret double %r }
"""


@cache
def object_of(kind: str) -> bytes:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = _TRIPLES[kind].format(llvm.get_default_triple().split("-")[0])
    module = llvm.parse_assembly(_MODULE)
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(codemodel="jitdefault")
    return machine.emit_object(module)


@pytest.mark.parametrize("kind", _TRIPLES)
def test_symbols_of_every_kind_of_object(kind: str):
    symbols = read_symbols(object_of(kind))
    assert symbols.defined == {"shown", "entry"}
    assert symbols.undefined - {"_fltused"} == {"sin"}
    assert "inner" in symbols.local


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(_TRIPLES)), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8))
def test_a_mutilated_object_is_a_format_error_or_read(kind: str, changes: list[tuple[int, int]]):
    code = bytearray(object_of(kind))
    for at, value in changes:
        code[at % len(code)] = value
    try:
        read_symbols(bytes(code[: len(code) - len(changes)]))
    except FormatError as error:
        assert "object file" in str(error)


def test_two_that_start_together_compile_each_kernel_once(user_home: Path) -> None:
    folder = paths.cache_dir() / "kernels"
    shutil.rmtree(folder, ignore_errors=True)
    names, caches = ["add", "rope", "gated"], [KernelCache(ISA, folder), KernelCache(ISA, folder)]
    threads = [threading.Thread(target=cache.prepare, args=(names,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(caches[0].compiled + caches[1].compiled) == sorted(names)
    assert all(add_works(cache) for cache in caches)
