"""A program on a pseudo terminal, as a user has it before him."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from typing import Self


class Terminal:
    """Starts the program; the end of a `with` block ends it."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._fd, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        env.pop("PYTHONUNBUFFERED", None)  # which nobody at a terminal has
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def send(self, text: str | bytes) -> None:
        os.write(self._fd, text.encode() if isinstance(text, str) else text)

    def expect(self, text: str, timeout_s: float = 60.0) -> str:
        """Read until `text` comes; what came up to there is returned and taken away."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come, but {self.seen[-2000:]!r}"
            if select.select([self._fd], [], [], left)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def say(self, line: str | bytes, answer: str) -> None:
        """Type a line when the chat's prompt comes, and await the answer."""
        self.expect(">>>")
        self.send((line.encode() if isinstance(line, str) else line) + b"\r")
        self.expect(answer)

    def rest(self) -> str:
        """What comes until the program ends."""
        while select.select([self._fd], [], [], 20)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self.seen += data.decode(errors="replace")
        return self.seen

    def hang_up(self) -> None:
        """The terminal goes away, as when its window is closed."""
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._fd >= 0:
            os.close(self._fd)
