"""What Windows' Python lacks is not needed to import edgerun, nor to run a model that is resident.

Nobody has run this on Windows: modules and functions that are not there are taken away here, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tiny_model import make_tiny_model

TAKE_AWAY = """
import sys, importlib, pkgutil
# what edgerun stands on knows the system it runs on, and may have these
import asyncio, concurrent.futures, ctypes, multiprocessing, numba, numpy, psutil, platformdirs, jinja2, subprocess
import huggingface_hub, prompt_toolkit, tokenizers, llvmlite.binding, tempfile, threading, rich
for name in ("numba.core.codegen", "numba.core.typing", "onnx", "onnxruntime"):
    importlib.import_module(name)
import mmap, os, signal, socket, time
# SIGKILL and WNOHANG stay: this system's subprocess asks for them, Windows' does not
for name in ("resource", "fcntl", "termios", "pwd", "grp", "pty", "tty", "syslog", "readline", "curses"):
    sys.modules[name] = None
gone = {
    os: "fork forkpty register_at_fork pread preadv pwrite pwritev posix_fadvise posix_fallocate sched_getaffinity "
    "sched_setaffinity sched_yield O_DIRECT O_CLOEXEC O_NOFOLLOW O_DIRECTORY O_NONBLOCK getuid geteuid getgid getegid "
    "uname sysconf statvfs fchmod fchown chown lchown killpg getpgid setsid nice wait3 wait4 mkfifo getloadavg "
    "sendfile openpty",
    mmap: "MAP_PRIVATE MAP_SHARED MAP_ANONYMOUS MAP_ANON MAP_POPULATE PROT_READ PROT_WRITE MADV_DONTNEED MADV_WILLNEED "
    "MADV_RANDOM MADV_SEQUENTIAL MADV_FREE MADV_HUGEPAGE",
    signal: "SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE pthread_sigmask setitimer alarm sigwait pause "
    "pthread_kill",
    time: "clock_gettime clock_gettime_ns CLOCK_MONOTONIC",
    socket: "AF_UNIX",
}
for module, names in gone.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
IMPORT_ALL = """
import edgerun
found = pkgutil.walk_packages(edgerun.__path__, "edgerun.")
names = [each.name for each in found if not each.name.endswith(("__main__", "llamacpp_worker"))]
assert len(names) > 150, len(names)
for name in names:
    importlib.import_module(name)
"""
RUN = """
from edgerun import LLM
with LLM(sys.argv[1], prefill="kernels") as llm:
    assert llm.engine.plan.mode == "resident"
    print(llm.complete("Once", max_tokens=4, temperature=0).token_ids)
from edgerun.device import page_faults, peak_bytes
from edgerun.weights.arena import Arena
from edgerun.weights.flash import FlashReader
from edgerun.errors import UnsupportedError
assert peak_bytes() > 1 << 20 and page_faults() == (0, 0)
arena = Arena(5000)
arena.bytes[:] = 1
arena.release(0, 4096)
try:
    FlashReader([])
except UnsupportedError as error:
    assert "preadv" in str(error)
else:
    raise AssertionError("streaming needs preadv")
"""


@pytest.mark.parametrize("what", ["import", "run"])
def test_without_what_windows_lacks(tmp_path, what):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("zeroconf")
    path = make_tiny_model(tmp_path / "tiny.gguf")
    before = "import zeroconf\n"  # it asks at its own import on which system it is, and this one stays Linux
    code = before + TAKE_AWAY + (IMPORT_ALL if what == "import" else RUN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
