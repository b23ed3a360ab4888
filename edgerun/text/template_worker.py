"""The program that renders chat templates, in a process of its own (see `template_process`).

It is run by its path with the folders that hold jinja2 and markupsafe as arguments, isolated from the environment,
and imports nothing of edgerun: what it takes at rest is Python and jinja2. Before the first template it gives up
for good what rendering does not need (starting processes, writing files, more than a few descriptors); before each
one its memory and processor time are limited to what the request says. jinja2's own sandbox is the wall in front of
that.

Frames in both directions are a length and JSON in UTF-8. A request's length is followed by what it may use.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import time
from collections.abc import Callable
from datetime import datetime
from types import GeneratorType
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment

# Bytes of JSON that follow, characters that may be written, bytes of memory above those at rest (0: the other end
# sees to it), processor seconds.
REQUEST = struct.Struct("<QQQd")
REPLY = struct.Struct("<Q")  # bytes of JSON that follow
_MAX_COMPILED = 8
_FILES = 16  # open at a time: jinja2 imports some of its parts when they are first used
_MAX_REASON_CHARS = 1000


class Refusal(Exception):
    """The template itself says that it cannot write this conversation."""


def main() -> None:
    """Answer requests until the other end closes."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.path[:0] = sys.argv[1:]
    try:
        environment = make_environment()
    except ImportError as error:
        _send(replies, {"failure": f"jinja2 cannot be imported: {error}"})
        return
    limits = _Limits()
    _send(replies, {"ready": True, "limits_memory": limits.memory_holds})
    compiled: dict[str, Template] = {}
    while header := requests.read(REQUEST.size):
        n_bytes, most_chars, memory_bytes, cpu_s = REQUEST.unpack(header)
        limits.set(memory_bytes, cpu_s)
        try:
            reply = _encoded(_answer(requests.read(n_bytes), most_chars, environment, compiled))
        except MemoryError:  # what is left after that is not worth keeping
            _send(replies, {"failure": "memory", "reason": ""})
            return
        _write(replies, reply)


def make_environment() -> SandboxedEnvironment:
    """jinja2 as Hugging Face's `apply_chat_template` sets it up, but for lists, which may be appended to: what a
    template changes is its own, for each rendering is given everything anew."""
    from jinja2 import nodes, pass_eval_context
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import SandboxedEnvironment as Sandbox

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training. They are written as they are."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        @pass_eval_context
        def _written(self, _context: Any, caller: Callable[[], str]) -> str:
            return caller()

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.filters["from_json"] = json.loads
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _answer(
    request: bytes, most_chars: int, environment: SandboxedEnvironment, compiled: dict[str, Template]
) -> dict[str, Any]:
    """{"text": ...}, or {"failure": which, "reason": ...}, as `template_process` knows them. Raises MemoryError."""
    stage = "compile"
    try:
        given = json.loads(request.decode("utf-8", "surrogatepass"))
        source = given["source"]
        template = compiled.get(source)
        if template is None:
            if len(compiled) >= _MAX_COMPILED:
                compiled.clear()
            template = compiled[source] = environment.from_string(source)
        stage = "render"
        text = template.render(given["values"])
        if len(text) > most_chars:
            return {"failure": "size", "reason": str(len(text))}
        return {"text": text}
    except Refusal as error:
        return {"failure": "refuse", "reason": str(error)[:_MAX_REASON_CHARS]}
    except MemoryError:
        raise
    except RecursionError as error:  # written in another way it would nest as deeply
        return {"failure": "depth", "reason": _explained(error)}
    except Exception as error:  # noqa: BLE001  (a template may raise anything that Python can)
        return {"failure": stage, "reason": _explained(error)}


def _explained(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    reason = str(error)[:_MAX_REASON_CHARS] or type(error).__name__
    return f"line {line}: {reason}" if line else reason


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    _write(replies, _encoded(reply))


def _encoded(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _write(replies: BinaryIO, data: bytes) -> None:
    replies.write(REPLY.pack(len(data)))
    replies.write(data)
    replies.flush()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates have it: no escapes for HTML, letters as they are. What a filter gives one by
    one is a list."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_as_list,
    )


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, GeneratorType):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _raise_exception(message: Any) -> None:
    raise Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _Limits:
    """Of this process, by the system. `memory_holds`: whether the system really stops it at its limit of memory."""

    def __init__(self) -> None:
        self._at_rest_bytes = _address_space_bytes()
        self.memory_holds = False
        try:
            import resource
        except ImportError:  # Windows: the other end watches instead
            return
        self._resource = resource
        for name, most in (("NOFILE", _FILES), ("NPROC", 0), ("FSIZE", 0), ("CORE", 0)):
            which = getattr(resource, f"RLIMIT_{name}", None)
            if which is not None:
                hard = resource.getrlimit(which)[1]
                least = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(which, (least, least))
        self.memory_holds = self._at_rest_bytes > 0 and self._is_stopped()

    def set(self, memory_bytes: int, cpu_s: float) -> None:
        """Allow so much beyond what is used at rest, and so much time from now on."""
        if self.memory_holds and memory_bytes:
            self._limit(self._resource.RLIMIT_AS, self._at_rest_bytes + memory_bytes)
        if hasattr(self, "_resource"):
            self._limit(self._resource.RLIMIT_CPU, math.ceil(time.process_time() + cpu_s))

    def _limit(self, which: int, wanted: int) -> None:
        hard = self._resource.getrlimit(which)[1]
        if hard != self._resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        self._resource.setrlimit(which, (wanted, hard))

    def _is_stopped(self) -> bool:
        """Some systems take a limit of address space and do not keep to it: try."""
        import mmap

        address_space = self._resource.RLIMIT_AS
        before = self._resource.getrlimit(address_space)
        try:
            self._limit(address_space, self._at_rest_bytes + (16 << 20))
            mmap.mmap(-1, 64 << 20).close()
        except (OSError, ValueError) as error:
            return isinstance(error, OSError)  # ValueError: the limit cannot be set at all
        finally:
            self._resource.setrlimit(address_space, before)
        return False


def _address_space_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  (pathlib would be imported for this alone)
            return int(file.read().split()[0]) * _page_bytes()
    except OSError:
        return 0


def _page_bytes() -> int:
    import mmap

    return mmap.PAGESIZE


if __name__ == "__main__":
    main()
