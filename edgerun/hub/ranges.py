"""A part of a file at a hub, and never more than that: what a server sends beyond is not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

from edgerun.errors import NetworkError

_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30


def read_range(url: str, headers: Mapping[str, Any], start: int, end: int, name: str) -> Iterator[bytes]:
    """Bytes start .. end - 1 of `url`, as they come. NetworkError, naming the file `name`, when the server gives the
    whole file, or more or fewer bytes than were asked for; and what the HTTP library raises."""
    utils = import_module("huggingface_hub.utils")
    asked = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    left = end - start
    with _answer(utils.get_session(), url, asked) as answer:
        if answer.status_code < 400 and answer.status_code != 206:
            raise NetworkError(f"the hub does not give parts of {name}; pull the model to plan it")
        utils.hf_raise_for_status(answer)
        for chunk in _chunks(answer):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise NetworkError(f"the hub gives other parts of {name} than it was asked for; pull the model to plan it")


def _answer(session: Any, url: str, headers: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Begun, its body not read. huggingface_hub's HTTP library differs between versions (httpx, before it requests)."""
    if hasattr(session, "stream"):
        answer: AbstractContextManager[Any] = session.stream("GET", url, headers=headers, timeout=_TIMEOUT_S)
    else:
        answer = session.get(url, headers=headers, timeout=_TIMEOUT_S, stream=True)
    return answer


def _chunks(answer: Any) -> Iterator[bytes]:
    read = answer.iter_bytes if hasattr(answer, "iter_bytes") else answer.iter_content
    yield from read(_CHUNK_BYTES)
