"""The process of `compile_processes`: compiles one kernel after another for whoever started it.

It reads lines of JSON (name, isa, symbol, machine) from its standard input and writes an int64 for each, how many bytes
follow, then object code; -1 and no bytes where that failed. It ends when its input does, in the middle of a kernel too:
whoever started it is gone, or wants no more.
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
            out.write(SIZE.pack(-1) if code is None else SIZE.pack(len(code)) + code)
            out.flush()


def _read(stream: IO[bytes], requests: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        requests.put(line)
    os._exit(0)


def _compiled(request: dict[str, Any]) -> bytes | None:
    from edgerun.kernels.compile import compile_kernel
    from edgerun.kernels.isa import Isa

    # tuples have become lists
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in request["isa"].items()}
    machine = None
    if request["machine"] is not None:
        from edgerun.kernels.numba_target import Machine

        machine = Machine(**request["machine"])
    try:
        return compile_kernel(request["name"], Isa(**fields), request["symbol"], machine)
    except Exception as error:  # noqa: BLE001 - whoever asked compiles it again and sees it there
        sys.stderr.write(f"{request['name']}: {error}\n")
        return None


if __name__ == "__main__":
    main()
