"""llama.cpp, by llama-cpp-python in an interpreter of its own that stays for the session."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, NotFoundError
from edgerun.profiling.bench import BenchRun
from edgerun.profiling.cases import Case

_WORKER = Path(__file__).with_name("llamacpp_worker.py")
_MOST_LINE = 1 << 24


class LlamaCppEngine:
    """`BenchEngine` of the same file and the same token ids. python: an interpreter that has llama-cpp-python. mapped:
    for memory that is short. NotFoundError where it cannot be started, with what it said."""

    name = "llamacpp"
    is_elsewhere = False

    def __init__(
        self,
        model: Path,
        *,
        context: int,
        threads: int,
        python: str = sys.executable,
        mapped: bool = False,
        limit_s: float = 300.0,
    ) -> None:
        self.threads = threads
        self._limit_s = limit_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        command = [python, str(_WORKER), str(model), str(context), str(threads), "1" if mapped else "0"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
            )
        except OSError as error:
            raise NotFoundError(f"llama.cpp cannot be started: {python}: {error}") from error
        try:
            about = self._next()
        except EdgerunError as error:
            raise NotFoundError(
                f"llama.cpp cannot be measured ({error}); name an interpreter that has it with --llamacpp-python "
                "(pip install llama-cpp-python)"
            ) from error
        self.load_s = float(about["load_s"])
        self.backend = f"llama-cpp-python {about['version']}"

    def run(self, case: Case) -> BenchRun:
        asked = {**vars(case), "limit_s": self._limit_s}
        assert self._process.stdin is not None  # it was asked for
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EdgerunError(f"llama.cpp has ended: {self._last_words()}") from error
        took = self._next()
        steps = tuple(float(step) for step in took["steps_s"])
        return BenchRun(case.prompt, float(took["prompt_s"]), steps)

    def close(self) -> None:
        """End the other process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # it died, and something was still to be told
                    stream.close()
        self._process.terminate()
        self._process.wait()
        self._said.close()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # it was asked for
        line = self._process.stdout.readline(_MOST_LINE)
        if not line:
            raise EdgerunError(f"it ended: {self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        if not all(math.isfinite(each) for each in found.get("steps_s", [])):
            raise EdgerunError("it told no numbers")
        return found

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()[-300:] or "it said nothing"
        return f"{said} ({signal.strsignal(-code)})" if code < 0 else said
