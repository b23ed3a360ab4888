"""What stands between a call's marks, in each of the ways that models write it, as calls.

Each of these takes the text and the functions that there are; None, or NoLiteral, where the text is no call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgerun.text.replies.literals import NoLiteral, Scanner, as_json, read_json
from edgerun.text.replies.parts import Call, Tools
from edgerun.text.replies.schemas import kinds_of

Body = Callable[[str, Tools], list[Call] | None]

_FUNCTION = re.compile(r"<function=([^>\n]+)>")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>")
_KEY = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>")
_NAME = re.compile(r"[\w.:/-]+")
_MISTRAL = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]([\w-]+))?\s*(?:\[ARGS\])?")
_SPACE = re.compile(r"\s*")
_FENCED = re.compile(r"\s*```(?:json)?\n(.*?)\n?```\s*\Z", re.DOTALL)
_JSON_KINDS: dict[type, set[str]] = {
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    str: set(),
    list: {"array"},
    dict: {"object"},
    type(None): {"null"},
}
_WORDS = {"True": True, "False": False, "None": None}


def json_body(body: str, tools: Tools) -> list[Call] | None:
    """`{"name": ..., "arguments": {...}}`, or a list of them; "parameters" is the same."""
    value = read_json(body)
    calls = [_json_call(item) for item in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def keyed_json_body(body: str, tools: Tools) -> list[Call] | None:
    """A list of mappings, each of a function's name to its arguments (Apertus)."""
    value = read_json(body)
    if not isinstance(value, list) or not all(isinstance(each, dict) and len(each) == 1 for each in value):
        return None
    found = [next(iter(each.items())) for each in value]
    if not found or not all(name and isinstance(given, dict) for name, given in found):
        return None
    return [Call(name, as_json(given)) for name, given in found]


def lines_body(body: str, tools: Tools) -> list[Call] | None:
    """As `json_body`, or one object a line (MiniMax M1)."""
    with suppress(NoLiteral):
        return json_body(body, tools)
    calls = [json_body(each, tools) for each in body.splitlines() if each.strip()]
    return [call for each in calls for call in each or ()] if calls and all(calls) else None


def identified_body(name_mark: str, arguments_mark: str) -> Body:
    """An id, a mark, NAME, a mark, and JSON (Solar)."""

    def read(body: str, tools: Tools) -> list[Call] | None:
        call_id, _, rest = body.partition(name_mark)
        name, found, given = rest.partition(arguments_mark)
        arguments = read_json(given) if found else None
        if not name.strip() or not isinstance(arguments, dict):
            return None
        return [Call(name.strip(), as_json(arguments), call_id.strip())]

    return read


def bare_json_body(body: str, tools: Tools) -> list[Call] | None:
    """One of `json_body`'s that stands without marks, where any JSON may be an answer: it has arguments, or its
    function is known."""
    calls, value = json_body(body, tools), read_json(body)
    named = calls is not None and (calls[0].name in tools or bool({"arguments", "parameters"} & set(value)))
    return calls if named else None


def tagged_body(body: str, tools: Tools) -> list[Call] | None:
    """What stands in <tool_call>: JSON (Hermes, Qwen 2.5 and 3), <function=...> (Qwen3-Coder, Qwen 3.5, Nemotron 3), or
    a name with <arg_key> and <arg_value> (GLM)."""
    text = body.strip()
    if text.startswith(("{", "[")):
        return json_body(text, tools)
    if text.startswith("<function="):
        return function_body(text, tools)
    return arg_body(text, tools)


def seed_body(body: str, tools: Tools) -> list[Call] | None:
    """As Qwen's, but values begin and end at their marks (Seed-OSS)."""
    return function_body(body, tools, by_line=False)


def function_body(body: str, tools: Tools, *, by_line: bool = True) -> list[Call] | None:
    """<function=NAME> with <parameter=KEY> of each argument, one or several. by_line: a value has lines of its own."""
    calls = []
    for opening, inside in _tagged(body, _FUNCTION, "</function>", may_lack_end=True):
        name = opening.group(1).strip()
        arguments = {
            found.group(1).strip(): typed(
                line(value) if by_line else value, tools.get(name, {}).get(found.group(1).strip())
            )
            for found, value in _tagged(inside, _PARAMETER, "</parameter>")
        }
        calls.append(Call(name, as_json(arguments)))
    return calls or None


def arg_body(body: str, tools: Tools) -> list[Call] | None:
    """NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>..."""
    name, key, rest = body.partition("<arg_key>")
    name = name.strip()
    if not _NAME.fullmatch(name) or not (key or name in tools):
        return None  # a word between marks is no call, unless there is such a function
    arguments = {
        found.group(1).strip(): typed(value, tools.get(name, {}).get(found.group(1).strip()))
        for found, value in _tagged(key + rest, _KEY, "</arg_value>")
    }
    return [Call(name, as_json(arguments))]


def invoke_body(prefix: str) -> Body:
    """<PREFIXinvoke name="..."> with <PREFIXparameter name="..."> of arguments (MiniMax M2, Muse, DeepSeek)."""
    mark = re.escape(prefix)
    invoke = re.compile(rf'<{mark}invoke name="([^"\n]+)">')
    parameter = re.compile(rf'<{mark}parameter name="([^"\n]+)"(?: string="(true|false)")?>')

    def body_of(body: str, tools: Tools) -> list[Call] | None:
        calls = []
        for opening, inside in _tagged(body, invoke, f"</{prefix}invoke>"):
            arguments = {}
            for found, value in _tagged(inside, parameter, f"</{prefix}parameter>"):
                key, is_text = found.groups()
                schema = tools.get(opening.group(1), {}).get(key)
                arguments[key] = typed(value, {"true": {"type": "string"}, "false": {}}.get(is_text, schema))
            calls.append(Call(opening.group(1), as_json(arguments)))
        return calls or None

    return body_of


def python_body(body: str, tools: Tools) -> list[Call] | None:
    """`[name(key=value, ...), ...]`, in Python's way to write it (LFM 2), or JSON."""
    text = body.strip()
    if not text.startswith("["):
        text = f"[{text}]" if not text.startswith("{") else text
    with suppress(NoLiteral):
        return json_body(text, tools)
    return _python_calls(Scanner(text))


def gemma_body(body: str, tools: Tools) -> list[Call] | None:
    """`call:NAME{key:value, ...}`, texts between <|"|> (Gemma 4)."""
    scanner = Scanner(body)
    calls = []
    while not scanner.is_over():
        scanner.need("call:")
        calls.append(Call(scanner.word(), as_json(scanner.mapping())))
    return calls or None


def divided_body(divider: str) -> Body:
    """NAME, a mark, and JSON (Kimi K2, DeepSeek V3.1), or "function", the mark, NAME and JSON between ``` (R1)."""

    def body_of(body: str, tools: Tools) -> list[Call] | None:
        name, found, rest = body.partition(divider)
        name = name.strip()
        call_id = name if re.fullmatch(r"functions\.[\w.-]+:\d+", name) else ""
        if call_id:
            name = name.removeprefix("functions.").rpartition(":")[0]
        if name == "function" and "\n" in rest:
            name, _, rest = rest.partition("\n")
            name = name.strip()
        fenced = _FENCED.match(rest)
        arguments = read_json(rest if fenced is None else fenced.group(1))
        if not found or not name or not isinstance(arguments, dict):
            return None
        return [Call(name, as_json(arguments), call_id)]

    return body_of


def named_json_body(body: str, tools: Tools) -> list[Call] | None:
    """`NAME[ARGS]{...}` (Mistral since 2025; [CALL_ID] and an id may stand between), or JSON as `json_body` has it."""
    start = body.find("{")
    header = body[: max(start, 0)].strip()
    if not header or header.startswith("["):
        return json_body(body, tools)
    found = _MISTRAL.fullmatch(header)
    arguments = read_json(body[start:])
    if found is None or not isinstance(arguments, dict):
        return None
    return [Call(found.group(1), as_json(arguments), found.group(2) or "")]


def _json_call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = value.get("name", value.get("tool_name"))
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    call_id = value.get("id")
    return Call(name, as_json(arguments), call_id if isinstance(call_id, str) else "")


def _python_calls(scanner: Scanner) -> list[Call] | None:
    scanner.need("[")
    calls: list[Call] = []
    while not scanner.has("]"):
        if calls:
            scanner.need(",")
        name = scanner.word()
        scanner.need("(")
        arguments: dict[str, Any] = {}
        while not scanner.has(")"):
            if arguments:
                scanner.need(",")
            key = scanner.word()
            scanner.need("=")
            arguments[key] = scanner.value()
        calls.append(Call(name, as_json(arguments)))
    return calls if calls and scanner.is_over() else None


def _tagged(
    text: str, opening: re.Pattern[str], closing: str, *, may_lack_end: bool = False
) -> list[tuple[re.Match[str], str]]:
    """Openings with what stands between them and their ends, which follow each other with nothing but whitespace
    between. NoLiteral where there is something else."""
    found = []
    at = _after_space(text, 0)
    while at < len(text):
        start = opening.match(text, at)
        end = -1 if start is None else text.find(closing, start.end())
        if start is None or (end < 0 and not may_lack_end):
            raise NoLiteral(f"no {closing} for what stands at {at}")
        end = len(text) if end < 0 else end
        found.append((start, text[start.end() : end]))
        at = _after_space(text, end + len(closing))
    return found


def line(value: str) -> str:
    """A value without the line breaks that templates put around it."""
    return value.removeprefix("\n").removesuffix("\n")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, min(at, len(text)))
    assert found is not None
    return found.end()


def typed(value: str, schema: Any) -> Any:
    """A value that was written without quotes, as its schema has it. What can be nothing but a text is taken as it is;
    of what may be one, other JSON is read where it is of a kind that it may be; else all JSON is."""
    kinds = kinds_of(schema)
    if kinds == {"string"}:
        return value
    text = value.strip()
    try:
        found = _WORDS[text] if text in _WORDS else read_json(text)
    except NoLiteral:
        return value
    return value if "string" in kinds and not kinds & _JSON_KINDS[type(found)] else found
