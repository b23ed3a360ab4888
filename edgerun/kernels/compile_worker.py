"""The process of `compile_processes`: compiles one kernel after another for whoever started it.

It reads lines of JSON (name, isa, symbol, machine) from its standard input and writes an int64 for each, how many bytes
follow, then object code. An error ends it: whoever asked compiles the kernel again and sees it there. It also ends when
its input does, in the middle of a kernel too: whoever started it is gone, or wants no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import sys
import threading
from typing import IO, Any

SIZE = struct.Struct("<q")


def main() -> None:
    """Serve until the input ends. The first argument is a JSON list: where to look for modules."""
    sys.path[:] = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    import gc

    gc.set_threshold(100_000, 50, 50)  # the compiler keeps most of what it makes: looking for garbage took 6 %
    while True:
        code = _compiled(json.loads(requests.get()))
        with contextlib.suppress(BrokenPipeError):
            out.write(SIZE.pack(len(code)) + code)
            out.flush()


def _read(stream: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        requests.put(line)
    os._exit(0)


def _compiled(request: dict[str, Any]) -> bytes:
    from edgerun.kernels.isa import Isa
    from edgerun.kernels.kernel_code import compile_kernel
    from edgerun.kernels.numba_target import Machine

    isa = {key: _as_it_was(value) for key, value in request["isa"].items()}
    machine = None if request["machine"] is None else Machine(**request["machine"])
    return compile_kernel(request["name"], Isa(**isa), request["symbol"], machine)


def _as_it_was(value: Any) -> Any:
    """Of an `Isa`'s value: tuples have become lists on the way, and tiles an object."""
    from edgerun.kernels.isa import Tiles

    if isinstance(value, dict):
        return Tiles(**{key: _as_it_was(each) for key, each in value.items()})
    return tuple(_as_it_was(each) for each in value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
