"""The jinja2 environment for chat templates: immutable, and with time, text and numbers bounded.

jinja2's sandbox keeps a template away from Python; it does not keep it from looping for ever or from writing
a gigabyte. Each loop turn, call, filter and written value is charged to the budget of its rendering here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgerun.errors import TemplateError

MAX_RANGE = 1 << 16
MAX_RENDER_S = 5.0
MAX_WRITTEN_CHARS = 1 << 25  # in all, captured text included
MAX_VALUE_ITEMS = 1 << 23  # characters of one string, items of one list
_MAX_STEPS = 1 << 22
_MAX_BITS = 4096
_MAX_FILTER_ARGUMENT = 1 << 16
_MAX_INDENT = 256
_LONG_WIDTH = re.compile(r"\d{4,}")
_GIVEN_WIDTH = re.compile(r"%[^a-z]*\*|:[^}]*\{")  # "%*d", "{:>{width}}"
_REMOVED_FILTERS = (  # slow on long text, or of no use here
    "filesizeformat",
    "pprint",
    "random",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
)


@dataclass(slots=True)
class Budget:
    """What one rendering may still use."""

    deadline: float
    steps: int = _MAX_STEPS
    chars: int = MAX_WRITTEN_CHARS

    @classmethod
    def fresh(cls) -> Budget:
        return cls(monotonic() + MAX_RENDER_S)

    def spend(self, chars: int = 0) -> None:
        """One step, and text written. Raises TemplateError when the budget is used up."""
        self.steps -= 1
        self.chars -= chars
        if self.chars < 0:
            raise TemplateError(f"the chat template writes more than {MAX_WRITTEN_CHARS} characters")
        if self.steps < 0 or monotonic() > self.deadline:
            raise TemplateError(f"the chat template does not end within {MAX_RENDER_S:g} s")


budget: ContextVar[Budget] = ContextVar("budget")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates so that all they do is charged to `budget`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, **options)
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _tojson
        for name, function in self.filters.items():
            self.filters[name] = _bounded_filter(name, function)
        self.filters[" turns"] = _Turns  # names that no template can spell
        self.filters[" sized"] = _sized
        del self.globals["lipsum"]
        self.globals["range"] = _range
        self.macro_chars = 0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in list(template.find_all(nodes.For)):
            chars = nodes.Const(_data_chars(loop))
            loop.iter = nodes.Filter(loop.iter, " turns", [chars], [], None, None)
        for parent in list(template.find_all(nodes.Node)):
            for field, value in parent.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, _sized_node(value))
                elif isinstance(value, list):
                    value[:] = [_sized_node(v) if isinstance(v, nodes.Concat) else v for v in value]
        self.macro_chars = _data_chars(template)
        template.set_environment(self)
        return template

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in a template; jinja2 sends all of them here."""
        repeats = isinstance(function, Macro | LoopContext)
        budget.get().spend(self.macro_chars if repeats else 0)
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_text_method(owner, method.__name__, (*args, *kwargs.values()))
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic whose result can be far larger than its operands."""
        budget.get().spend()
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int):
                    _check_size(len(many) * times)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise TemplateError(f"the chat template computes a number of more than {_MAX_BITS} bits")
        return super().call_binop(context, operator, left, right)


class Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training. They are written as they are."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Turns:
    """What a loop runs over, charging each turn: a step, and the text that stands in the loop."""

    def __init__(self, items: Any, chars: int) -> None:
        self._items = items
        self._chars = chars

    def __iter__(self) -> Iterator[Any]:
        spend, chars = budget.get().spend, self._chars
        for item in self._items:
            spend(chars)
            yield item

    def __len__(self) -> int:
        return len(self._items)


def _data_chars(node: nodes.Node) -> int:
    """Characters of the text and the strings that stand in `node`."""
    data = sum(len(piece.data) for piece in node.find_all(nodes.TemplateData))
    return data + sum(len(c.value) for c in node.find_all(nodes.Const) if isinstance(c.value, str))


def _sized_node(node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, " sized", [], [], None, None, lineno=node.lineno)


def _written(value: Any) -> Any:
    """jinja2's `finalize`: sees every value before it is written."""
    current = budget.get(None)
    if current is not None:  # None while constants are folded
        text = value if isinstance(value, str) else str(value)
        current.spend(len(text))
        return text
    return value


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise TemplateError(f"the chat template asks for a range of {len(numbers)}; at most {MAX_RANGE}")
    return numbers


def _check_size(items: int) -> None:
    if items > MAX_VALUE_ITEMS:
        raise TemplateError(f"the chat template makes a value of {items} items; at most {MAX_VALUE_ITEMS}")


def _sized(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict):
        _check_size(len(value))
    return value


def _check_format(pattern: str, values: tuple[Any, ...]) -> None:
    widths = [value for value in values if isinstance(value, int) and value > _MAX_FILTER_ARGUMENT]
    if _LONG_WIDTH.search(pattern) or (widths and _GIVEN_WIDTH.search(pattern)):
        raise TemplateError("the chat template formats to a width that no text needs")


def _check_text_method(text: str, method: str, args: tuple[Any, ...]) -> None:
    if method in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        width = next((arg for arg in args if isinstance(arg, int)), 0)
        _check_size(max(width, 0) * (text.count("\t") + 1 if method == "expandtabs" else 1))
    elif method == "replace" and len(args) > 1 and all(isinstance(arg, str) for arg in args[:2]):
        _check_replace(text, args[0], args[1])
    elif method == "join" and args and isinstance(args[0], Sized):
        _check_join(text, args[0])
    elif method in ("format", "format_map"):
        _check_format(text, args)


def _check_replace(text: str, old: str, new: str) -> None:
    _check_size(len(text) + text.count(old) * len(new))


def _check_join(separator: str, items: Any) -> None:
    _check_size(len(separator) * len(items) + sum(len(i) for i in items if isinstance(i, str)))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its numbers and its result bounded; `wraps` keeps what jinja2 marked it with."""
    largest = _MAX_INDENT if name in ("indent", "tojson") else _MAX_FILTER_ARGUMENT
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        current = budget.get(None)
        if current is not None:
            current.spend()
        given = [*args[skipped + 1 :], *kwargs.values()]
        if any(isinstance(arg, int) and arg > largest for arg in given):
            raise TemplateError(f"the chat template gives the filter {name} a number above {largest}")
        value = args[skipped] if len(args) > skipped else None
        if name == "replace" and isinstance(value, str) and len(given) > 1:
            _check_replace(value, str(given[0]), str(given[1]))
        elif name == "join" and isinstance(value, Sized):
            _check_join(str(given[0]) if given else "", value)
        elif name == "format" and isinstance(value, str):
            _check_format(value, tuple(given))
        elif name == "indent" and isinstance(value, str):
            widest = max((len(arg) if isinstance(arg, str) else 4 for arg in given), default=4)
            _check_size(len(value) + value.count("\n") * max(widest, _MAX_INDENT))
        return _sized(function(*args, **kwargs))

    return bounded


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates have it: no escapes for HTML, letters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
