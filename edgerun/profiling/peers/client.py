"""Engines that are given a text and stream an answer: times are taken at the client, the same way for all of them.

The time to the first token is the prompt's, the time between the first and the last token is decoding's. Requests ask
for greedy answers of a fixed length; what ends earlier is counted as long as it was.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from edgerun.errors import NetworkError, UsageError
from edgerun.profiling.bench import BenchRun
from edgerun.profiling.cases import Case

_TIMEOUT_S = 300.0
_MOST_LINE = 1 << 20
_WORDS = (
    *("the", "river", "runs", "past", "old", "stones", "and", "green", "fields"),
    *("to", "a", "quiet", "town", "by", "the", "sea", "where", "people"),
)

Stream = Callable[[str, int], Iterator[int]]  # (text, most tokens) -> tokens that came with each piece


def prompt_text(tokens: int, turn: int) -> str:
    """About so many tokens of plain words, different in every `turn` from the first word on, so that no server has it
    in a cache."""
    return " ".join([str(turn), *(_WORDS[i % len(_WORDS)] for i in range(max(0, tokens - 1)))])


class TextEngine:
    """`BenchEngine` over a function that streams an answer."""

    threads = 0
    is_elsewhere = False

    def __init__(self, name: str, backend: str, stream: Stream, close: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.backend = backend
        self._stream = stream
        self._turn = 0
        self.close = close

    def run(self, case: Case) -> BenchRun:
        """UsageError for a depth or batches: a server chooses those itself."""
        if case.depth or case.batch:
            raise UsageError("-d and -b cannot be measured through a server")
        self._turn += 1
        text = prompt_text(case.prompt or 1, self._turn)
        began = time.perf_counter()
        times: list[tuple[float, int]] = []
        for tokens in self._stream(text, max(1, case.decode + (1 if case.prompt == 0 else 0))):
            times.append((time.perf_counter(), tokens))
        if not times:
            raise NetworkError(f"{self.name} answered nothing")
        prompt_s = times[0][0] - began
        decoded = sum(tokens for _, tokens in times[1:])
        steps: list[float] = []
        before = times[0][0]
        for at, tokens in times[1:]:
            steps += [(at - before) / max(1, tokens)] * tokens
            before = at
        if not case.decode or not decoded:
            steps = []
        return BenchRun(case.prompt, prompt_s, tuple(steps))


class EndpointEngine(TextEngine):
    """A server of OpenAI's kind at `url` (".../v1"). model: its name there; "" takes the first that it lists.
    limit_s: after which a server that says nothing is given up. NetworkError when it cannot be reached, refuses, or
    breaks off."""

    is_elsewhere = True

    def __init__(
        self, url: str, model: str = "", *, key: str = "", name: str = "endpoint", limit_s: float = _TIMEOUT_S
    ) -> None:
        self._url = _checked(url)
        self._limit_s = limit_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._headers = headers
        self.model = model or self._first_model()
        super().__init__(name, f"{urlsplit(self._url).netloc} {self.model}", self._answer)

    def _first_model(self) -> str:
        listed = _object(b"".join(_lines(f"{self._url}/models", None, self._headers, self._limit_s)))
        models = _names(listed.get("data"), "id")
        if not models:
            raise NetworkError(f"{self._url} lists no models: an endpoint is a URL like http://127.0.0.1:8080/v1")
        return models[0]

    def _answer(self, text: str, most: int) -> Iterator[int]:
        asked = {
            "model": self.model,
            "prompt": text,
            "max_tokens": most,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
        ended = False
        for line in _lines(f"{self._url}/completions", asked, self._headers, self._limit_s):
            if not line.startswith(b"data:"):
                continue
            said = line[5:].strip()
            if said == b"[DONE]":
                return
            choices = _object(said).get("choices")
            choice = choices[0] if isinstance(choices, list) and choices else None
            if isinstance(choice, dict):
                ended = ended or bool(choice.get("finish_reason"))
                if choice.get("text"):
                    yield 1
        if not ended:
            raise NetworkError(f"{self._url} broke off in the middle of an answer")


class OllamaEngine(TextEngine):
    """Ollama at `url`. model: its name there; "" takes the first that it lists. limit_s, NetworkError: as of
    `EndpointEngine`. https://github.com/ollama/ollama/blob/main/docs/api.md"""

    is_elsewhere = True

    def __init__(self, model: str = "", *, url: str = "http://127.0.0.1:11434", limit_s: float = _TIMEOUT_S) -> None:
        self._url = _checked(url)
        self._limit_s = limit_s
        self.model = model or self._first_model()
        super().__init__("ollama", f"ollama {self.model}", self._answer)

    def _first_model(self) -> str:
        listed = _object(b"".join(_lines(f"{self._url}/api/tags", None, {}, self._limit_s)))
        models = _names(listed.get("models"), "name")
        if not models:
            raise NetworkError(f"{self._url} has no models: `ollama pull` one, and name it with --peer-model")
        return models[0]

    def _answer(self, text: str, most: int) -> Iterator[int]:
        options = {"num_predict": most, "temperature": 0}
        asked = {"model": self.model, "prompt": text, "raw": True, "stream": True, "options": options}
        for line in _lines(f"{self._url}/api/generate", asked, {}, self._limit_s):
            said = _object(line)
            if said.get("response"):
                yield 1
            if said.get("done"):
                return
        raise NetworkError(f"{self._url} broke off in the middle of an answer")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # of a port that is no number, or a bracket that is not closed
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"an endpoint is a URL like http://127.0.0.1:8080/v1, got {url!r}")
    return url.rstrip("/")


def _names(listed: object, key: str) -> list[str]:
    """Of the models in a server's list."""
    items = listed if isinstance(listed, list) else []
    return [str(each[key]) for each in items if isinstance(each, dict) and key in each]


def _lines(url: str, asked: dict[str, Any] | None, headers: dict[str, str], limit_s: float) -> Iterator[bytes]:
    """Of the answer, as they come."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    response: http.client.HTTPResponse | None = None
    connection = make(parts.hostname or "", parts.port, timeout=limit_s)
    try:
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = None if asked is None else json.dumps(asked)
        kind = {} if asked is None else {"Content-Type": "application/json"}
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("GET" if asked is None else "POST", path, body, {**headers, **kind})
        response = connection.getresponse()
        if response.status != 200:
            said = response.read(300).decode(errors="replace").strip()
            raise NetworkError(f"{url} refused ({response.status}): {said}")
        while line := response.readline(_MOST_LINE):
            if line.strip():
                yield line.strip()
    except NetworkError:
        raise
    except TimeoutError as error:
        raise NetworkError(f"{url} has said nothing for {limit_s:g} s (--limit-s waits longer)") from error
    except (OSError, http.client.HTTPException) as error:
        what = "cannot be reached" if response is None else "broke off in the middle of an answer"
        raise NetworkError(f"{url} {what}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise NetworkError(f"the server sent {line[:80]!r}, which is no JSON") from error
    if not isinstance(found, dict) or found.get("error"):
        raise NetworkError(f"the server sent {line[:200]!r}")
    return found
