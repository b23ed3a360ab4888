"""The slash commands of the chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.options import SAMPLING_NAMES
from edgerun.cli.output import note, print_pairs
from edgerun.errors import EdgerunError, FormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from edgerun.cli.chat import Chat

_WHOLE = ("max_tokens", "top_k", "seed")


def obey(chat: Chat, line: str) -> str | None:
    """Do what a `/command` says. Returns a message to be answered now, if any. Raises EdgerunError."""
    name, _, rest = line[1:].strip().partition(" ")
    if name not in _COMMANDS:
        raise UsageError(f"no command /{name}; there are {', '.join('/' + known for known in _COMMANDS)}")
    return _COMMANDS[name][0](chat, rest.strip())


def _help(chat: Chat, rest: str) -> None:
    print_pairs({f"/{name}{usage}": text for name, (_, usage, text) in _COMMANDS.items()})
    click.echo('Alt-Enter begins a new line; """ begins and ends a message of several lines.')
    click.echo("Ctrl-C stops the reply, Ctrl-D leaves.")


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.system = None if rest == "-" else rest
    click.echo(chat.system if chat.system is not None else "(no system message)")


def _set(chat: Chat, rest: str) -> None:
    from edgerun.api import SamplingParams

    name, _, text = rest.partition(" ")
    if not rest:
        print_pairs({name: _shown(getattr(SamplingParams(**chat.options), name)) for name in SAMPLING_NAMES})
        return
    name = name.replace("-", "_")
    if name not in SAMPLING_NAMES or not text.strip():
        raise UsageError(f"write /set NAME VALUE, or default as VALUE; NAME is one of {', '.join(SAMPLING_NAMES)}")
    options = {key: value for key, value in chat.options.items() if key != name}
    if text.strip() != "default":
        options[name] = _value(name, text.strip())
    SamplingParams(**options)  # refuses what makes no sense
    chat.options = options


def _stats(chat: Chat, rest: str) -> None:
    if rest not in ("", "on", "off"):
        raise UsageError("write /stats, /stats on or /stats off")
    if rest:
        chat.stats = rest == "on"
    elif chat.last is None:
        click.echo("(no reply yet)")
    else:
        click.echo(chat.last_stats())


def _save(chat: Chat, rest: str) -> None:
    if not chat.chats:
        raise UsageError("this model has no chat template: there is no chat to save")
    path = _file(rest)
    content = {"model": chat.name, "options": chat.options, "messages": chat.messages}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise EdgerunError(f"{path}: cannot be written: {error.strerror}") from error
    note(f"saved {path}")


def _load(chat: Chat, rest: str) -> None:
    from edgerun.api import SamplingParams

    if not chat.chats:
        raise UsageError("this model has no chat template: it cannot go on with a chat")
    path = _file(rest)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such chat") from None
    except OSError as error:
        raise EdgerunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{path}: not a saved chat: {error}") from error
    messages = content.get("messages") if isinstance(content, dict) else None
    options = content.get("options", {}) if isinstance(content, dict) else None
    if not isinstance(messages, list) or not all(map(_is_message, messages)) or not isinstance(options, dict):
        raise FormatError(f"{path}: not a saved chat: it has no list of messages with role and content")
    known = {name: value for name, value in options.items() if name in SAMPLING_NAMES}
    SamplingParams(**known)
    chat.clear()
    chat.messages, chat.options = messages, known
    note(f"loaded {path}: {len(messages)} messages")


def _retry(chat: Chat, rest: str) -> str:
    return chat.take_back()


def _clear(chat: Chat, rest: str) -> None:
    chat.clear()


def _bye(chat: Chat, rest: str) -> None:
    chat.leaving = True


_COMMANDS: dict[str, tuple[Callable[[Chat, str], str | None], str, str]] = {
    "help": (_help, "", "this list"),
    "system": (_system, " [TEXT]", "show or set how the model should behave; - for nothing"),
    "set": (_set, " [NAME VALUE]", "show or change how tokens are chosen"),
    "stats": (_stats, " [on|off]", "counts and rates of the last reply, or after each one"),
    "save": (_save, " NAME", "save the chat (a name, or a path that ends in .json)"),
    "load": (_load, " NAME", "go on with a saved chat"),
    "retry": (_retry, "", "answer the last message again"),
    "clear": (_clear, "", "forget the chat"),
    "bye": (_bye, "", "leave"),
}


def _file(name: str) -> Path:
    if not name:
        raise UsageError("give a name, or a path that ends in .json")
    if name.endswith(".json"):
        return Path(name).expanduser()
    if "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"{name}: a name has no slashes, a path ends in .json")
    from edgerun import paths

    return paths.data_dir() / "chats" / f"{name}.json"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _value(name: str, text: str) -> Any:
    if name == "stop":
        return (text,)
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(f"{name} must be {kind}, got {text!r}") from None


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
