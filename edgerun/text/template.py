"""Chat templates: messages to the prompt text that a model was trained on.

A template is a program from a file that nobody vouches for: it runs in the sandbox of `edgerun.text.sandbox`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from edgerun.errors import TemplateError
from edgerun.text.fallbacks import fallback_template

if TYPE_CHECKING:
    from edgerun.text.sandbox import BoundedEnvironment

DEFAULT_KEY = "tokenizer.chat_template"
TOOL_TEMPLATE = "tool_use"

_MAX_TEMPLATE_CHARS = 1 << 20


class _Vocabulary(Protocol):
    bos_id: int | None
    eos_id: int | None

    def token_text(self, token_id: int) -> str: ...

    def token_id(self, text: str) -> int | None: ...


class ChatTemplate:
    """A compiled template. `source` is its text, `name` "" for the default one.

    `with_tools` is the template to use when tools are given, if the file has a separate one.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "",
        with_tools: ChatTemplate | None = None,
    ) -> None:
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise TemplateError(f"the chat template has {len(source)} characters; {_MAX_TEMPLATE_CHARS} are too many")
        self.source = source
        self.name = name
        self.with_tools = with_tools
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        from jinja2 import TemplateError as JinjaError

        try:
            self._template = _environment().from_string(source)
        except (JinjaError, RecursionError, MemoryError, OverflowError, ValueError) as error:
            raise TemplateError(f"the chat template cannot be compiled: {_explained(error)}") from error

    def __repr__(self) -> str:
        return f"<ChatTemplate {self.name or 'default'}: {len(self.source)} characters>"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`, each {"role": ..., "content": text or parts of type "text"}.

        `tools` are JSON schemas as OpenAI has them; other `variables` (enable_thinking=False, ...) go to the
        template as they are. Raises TemplateError when a message is malformed or the template refuses.
        """
        if tools and self.with_tools is not None:
            return self.with_tools.render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
            )
        checked = [_checked(i, message) for i, message in enumerate(_listed(messages))]
        values = {
            **self._tokens,
            **variables,
            "messages": checked,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._run(values)

    def _run(self, values: dict[str, Any]) -> str:
        from edgerun.text.sandbox import Budget, budget

        token = budget.set(Budget.fresh())
        try:
            return self._template.render(values)
        except TemplateError:
            raise
        except Exception as error:  # noqa: BLE001  (a template may raise anything that Python can)
            raise TemplateError(f"the chat template failed: {_explained(error)}") from error
        finally:
            budget.reset(token)


def load_chat_template(metadata: Mapping[str, Any], tokenizer: _Vocabulary, name: str = "") -> ChatTemplate:
    """The chat template of a GGUF (or the one that it calls `name`).

    Without one, the format is guessed from the vocabulary's special tokens; failing that, a plain transcript.
    Raises TemplateError when the template is malformed, or there is none of that name.
    """
    named = {key.removeprefix(DEFAULT_KEY + "."): key for key in metadata if key.startswith(DEFAULT_KEY + ".")}
    tokens = {
        f"{stem}_token": "" if token_id is None else tokenizer.token_text(token_id)
        for stem, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
    }

    def template(key: str, name: str, with_tools: ChatTemplate | None = None) -> ChatTemplate:
        source = metadata[key]
        if not isinstance(source, str):
            raise TemplateError(f"{key} must be a string, got {type(source).__name__}")
        return ChatTemplate(source, name=name, with_tools=with_tools, **tokens)

    if name and name != "default":
        if name not in named:
            known = ", ".join(sorted(named)) or "none but the default"
            raise TemplateError(f"the model has no chat template {name!r}; it has {known}")
        return template(named[name], name)
    with_tools = template(named[TOOL_TEMPLATE], TOOL_TEMPLATE) if TOOL_TEMPLATE in named else None
    if DEFAULT_KEY in metadata:
        return template(DEFAULT_KEY, "", with_tools)
    if "default" in named:
        return template(named["default"], "", with_tools)
    return ChatTemplate(fallback_template(tokenizer.token_id), name="fallback", with_tools=with_tools, **tokens)


def _listed(messages: Any) -> list[Any]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages must be a list of messages, got {type(messages).__name__}")
    return list(messages)


def _checked(index: int, message: Any) -> dict[str, Any]:
    """A message as templates expect it: a fresh dict, its content a string."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} must be a mapping with role and content, got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise TemplateError(f'{where} needs a role ("system", "user", "assistant" or "tool"), got {role!r}')
    checked = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        return checked
    if content is None:
        if role == "assistant" or "tool_calls" in message:
            checked["content"] = ""
            return checked
        raise TemplateError(f"{where} ({role}) has no content")
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        checked["content"] = "".join(_part_text(f"{where}.content[{i}]", part) for i, part in enumerate(content))
        return checked
    raise TemplateError(f"{where}.content must be text or a list of parts, got {type(content).__name__}")


def _part_text(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        got = f"of type {kind!r}" if kind is not None else repr(type(part).__name__)
        raise TemplateError(f'{where} must be {{"type": "text", "text": ...}}, got a part {got}')
    text: str = part["text"]
    return text


def _explained(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    text = str(error) or type(error).__name__
    return f"line {line}: {text}" if line else text


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256 or re.search(r"%\d{3}", pattern):
        raise TemplateError("the chat template asks for a date in an unreasonable format")
    return datetime.now().strftime(pattern)


def _environment() -> BoundedEnvironment:
    from edgerun.text.sandbox import BoundedEnvironment, Generation

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
