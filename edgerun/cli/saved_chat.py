"""Saved chats: JSON files with the model's name, the options of sampling and the messages. Beside each lies what its
session holds (`Session.save`), which saves computing it again and is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.cli.json_files import read_json
from edgerun.cli.options import SAMPLING_NAMES
from edgerun.errors import EdgerunError, FormatError, UsageError
from edgerun.options import SAMPLING
from edgerun.paths import data_dir, kind_of, replace_file, user_path

_KEPT = ("role", "content", "reasoning_content")  # of each message


@dataclass(frozen=True)
class SavedChat:
    """What is kept of a chat. `options`: of sampling, checked."""

    model: str
    options: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]]


def chat_path(name: str) -> Path:
    """Where the chat of this name lies: a path that ends in .json, or a name among the chats that are kept. UsageError
    for anything else."""
    if not name:
        raise UsageError("give a name, or a path that ends in .json")
    if name.endswith(".json"):
        return user_path(name)
    if "/" in name or "\\" in name or name.startswith("."):
        raise UsageError(f"{name}: a name has no slashes, a path ends in .json")
    return user_path(data_dir() / "chats" / f"{name}.json")


def session_path(path: Path) -> Path:
    """Where the session of a saved chat lies."""
    return path.with_suffix(".session.safetensors")


def not_ours(path: Path) -> list[Path]:
    """Which files are there that saving a chat as `path` would overwrite though edgerun did not make them."""
    from edgerun.engine.saved import is_session

    files = ((path, _is_saved_chat), (session_path(path), is_session))
    return [each for each, is_ours in files if kind_of(each) and not is_ours(each)]


def write_chat(path: Path, chat: SavedChat) -> None:
    """Under the name stands the old file or the whole new one. EdgerunError when it cannot be written."""
    content = {"model": chat.model, "options": chat.options, "messages": chat.messages}
    # A lone surrogate has no UTF-8; what takes its place is how JSON escapes it, so it is read back as it was.
    data = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "backslashreplace")
    try:
        replace_file(path, [data])
    except OSError as error:
        raise EdgerunError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_chat(path: Path) -> SavedChat:
    """NotFoundError, EdgerunError where it cannot be read, FormatError for what is no saved chat, UsageError for
    options that cannot be."""
    content = read_json(path, "a saved chat")
    messages = content.get("messages") if isinstance(content, dict) else None
    options = content.get("options", {}) if isinstance(content, dict) else None
    if not isinstance(messages, list) or not all(map(_is_message, messages)) or not isinstance(options, dict):
        raise FormatError(f"{path}: not a saved chat: it has no list of messages with role and content")
    checked = {name: SAMPLING[name].check(name, options[name]) for name in SAMPLING_NAMES if name in options}
    said = [{key: message[key] for key in _KEPT if isinstance(message.get(key), str)} for message in messages]
    return SavedChat(str(content.get("model", "")), checked, said)


def _is_saved_chat(path: Path) -> bool:
    try:
        read_chat(path)
    except (FormatError, UsageError):
        return False
    return True


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
