"""Chat templates: messages to the prompt text that a model was trained on.

A template is a program from a file that nobody vouches for: it runs in a process of its own, whose memory and time
are bounded (see `template_process`), and within it in jinja2's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import product
from time import monotonic
from typing import Any, Protocol

from edgerun.errors import TemplateError, UsageError
from edgerun.text.conversation import (
    Conversation,
    arguments_as_text,
    as_system,
    checked_conversation,
    gathered_system,
    lacks_system,
    other_ways,
    shows_mappings,
)
from edgerun.text.dialects import completed_tools, in_dialect
from edgerun.text.fallbacks import fallback_template
from edgerun.text.template_process import TemplateProcess, TemplateRefusal

DEFAULT_KEY = "tokenizer.chat_template"
TOOL_TEMPLATE = "tool_use"

_MAX_TEMPLATE_CHARS = 1 << 20
_MAX_TITLE_CHARS = 60


class _Vocabulary(Protocol):
    bos_id: int | None
    eos_id: int | None

    def token_text(self, token_id: int) -> str: ...

    def token_id(self, text: str) -> int | None: ...


class ChatTemplate:
    """A template. `source` is its text, `name` "" for the default one, `model` whose it is (for messages).

    `with_tools` is the template to use when tools are given, if the file has a separate one. It is compiled when
    it is first used. `process`: where it runs; None: one of its own.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "",
        model: str = "",
        with_tools: ChatTemplate | None = None,
        process: TemplateProcess | None = None,
    ) -> None:
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise TemplateError(f"the chat template has {len(source)} characters; {_MAX_TEMPLATE_CHARS} are too many")
        self.source = source
        self.name = name
        self.with_tools = with_tools
        self.label = "the chat template" + (f" {name!r}" if name else "") + (f" of {model}" if model else "")
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._process = process or TemplateProcess()

    def __repr__(self) -> str:
        return f"<ChatTemplate {self.name or 'default'}: {len(self.source)} characters>"

    def start(self) -> None:
        """Start the process in which it runs, without waiting: the first rendering is quicker then."""
        self._process.start()

    def close(self) -> None:
        """End that process. Renderings raise UsageError from then on."""
        self._process.close()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str:
        """The prompt for `messages`, each {"role": ..., "content": text or parts of type "text"}, and what else the
        template knows (reasoning_content, tool_calls, tool_call_id, name).

        `tools` are JSON schemas as OpenAI has them; other `variables` (enable_thinking=False,
        add_generation_prompt=False, ...) go to the template as they are; all of it must be what JSON can hold. Without
        tools the template sees no such variable. Where it cannot write the conversation as it is, it is asked again
        with calls' arguments as JSON text, and with the system's message as the beginning of the user's.
        Raises TemplateError when a message is malformed, the template cannot be compiled, refuses or exceeds its
        limits; Cancelled soon after `cancelled()` becomes true; UsageError for variables that the chat itself sets.
        """
        if tools and self.with_tools is not None:
            return self.with_tools.render(messages, tools=tools, variables=variables, cancelled=cancelled)
        given = dict(variables or {})
        for name in ("messages", "tools"):
            if name in given:
                raise UsageError(f"the template variable {name!r} is set by the chat: give it as {name}")
        values = {
            **self._tokens,
            "add_generation_prompt": True,
            **given,
            **({"tools": list(tools)} if tools else {}),
        }
        conversation = in_dialect(self.source, checked_conversation(messages), tools or ())
        until = monotonic() + self._process.limits.cpu_s

        def written(way: Conversation, **more: Any) -> str:
            return self._process.render(self.label, self.source, {**values, **more, "messages": way}, cancelled)

        try:
            text = written(conversation)
        except TemplateRefusal as first:
            if not conversation:
                raise TemplateError(f"{self.label} needs a message: there is none") from first
            schemas = completed_tools(tools or ())
            as_text = {"functions": json.dumps(schemas, indent=2) if schemas else "", "datetime": str(date.today())}
            more = {"tools": schemas or None, **as_text}  # Firefunction knows tools as a text
            for way, given in product([conversation, *other_ways(conversation)], [{}, more]):
                if (way is not conversation or given) and monotonic() < until:
                    with suppress(TemplateRefusal):
                        return written(way, **given)
            raise first
        for lacks, other_way in (
            (shows_mappings, arguments_as_text),
            (lacks_system, as_system),
            (lacks_system, gathered_system),
        ):
            if lacks(text, conversation):
                with suppress(TemplateRefusal):
                    other = written(other_way(conversation))
                    text = text if lacks(other, conversation) else other
        return text


def load_chat_template(metadata: Mapping[str, Any], tokenizer: _Vocabulary, name: str = "") -> ChatTemplate:
    """The chat template of a GGUF (or the one that it calls `name`).

    Without one, the format is guessed from the vocabulary's special tokens; failing that, a plain transcript.
    Raises TemplateError when the template is no text or too long, or there is none of that name.
    """
    process = TemplateProcess()
    model = _title(metadata.get("general.name"))
    named = {key.removeprefix(DEFAULT_KEY + "."): key for key in metadata if key.startswith(DEFAULT_KEY + ".")}
    tokens = {
        f"{stem}_token": "" if token_id is None else tokenizer.token_text(token_id)
        for stem, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
    }

    def template(key: str, name: str, with_tools: ChatTemplate | None = None) -> ChatTemplate:
        source = metadata[key]
        if not isinstance(source, str):
            raise TemplateError(f"{key} must be a string, got {type(source).__name__}")
        return ChatTemplate(source, name=name, model=model, with_tools=with_tools, process=process, **tokens)

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
    source = fallback_template(tokenizer.token_id)
    return ChatTemplate(source, name="fallback", model=model, with_tools=with_tools, process=process, **tokens)


def _title(value: Any) -> str:
    """A model's name from its file, if it can stand in a message."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= _MAX_TITLE_CHARS else ""
