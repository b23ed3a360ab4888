"""llama.cpp's logits of one file after another, from a process that stays: for `vary_families.py`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_ORACLE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import json, numpy as np
from tools.record_golden import logits_of
for line in sys.stdin:
    path, ids = Path(line.strip()), json.loads(sys.stdin.readline())
    try:
        np.save(path.with_suffix(".npy"), np.stack([logits_of(path, ids), logits_of(path, ids, 1)]))
        print("", flush=True)
    except SystemExit as error:
        print(error, flush=True)
"""


class Refused(Exception):
    """llama.cpp does not run the file."""


class Llama:
    """llama.cpp in another process, by the Python that has it. It is started once more where a file kills it."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[str] | None = None

    def logits(self, path: Path, ids: list[int]) -> np.ndarray:
        """(2, tokens, vocab) f32, token by token: with keys and values in F32 and, as ours, in F16. Raises Refused."""
        if self._process is None:
            command = [self._python, "-c", _ORACLE.format(root=str(ROOT))]
            environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True, env=environment)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n{json.dumps(ids)}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if said != "\n":
            self.close()
            raise Refused(said.strip() or "llama.cpp died of it")
        return np.asarray(np.load(path.with_suffix(".npy"), allow_pickle=False))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
