"""The slash commands of the chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgerun.cli.chat import Chat
from edgerun.cli.options import SAMPLING_NAMES
from edgerun.cli.output import note, print_pairs
from edgerun.cli.saved_chat import chat_path, not_ours, session_path
from edgerun.errors import UsageError
from edgerun.options import SAMPLING
from edgerun.units import format_size


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
        options[name] = SAMPLING[name].parse(name, text.strip())
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
    path = chat_path(rest)
    for each in not_ours(path):
        if not chat.confirms(f"{each} is not a saved chat: overwrite it?"):
            raise UsageError(f"{each} is not a saved chat and was left as it is; give another name")
    chat.save(path)
    note(f"saved {path}, and {format_size(session_path(path).stat().st_size)} of keys and values beside it")


def _load(chat: Chat, rest: str) -> None:
    if not chat.chats:
        raise UsageError("this model has no chat template: it cannot go on with a chat")
    path = chat_path(rest)
    chat.load(path)
    note(f"loaded {path}: {len(chat.messages)} messages")


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


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
