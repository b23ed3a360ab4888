"""Saved chats: JSON files with the model's name, the options of sampling and the messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.cli.json_files import read_json
from edgerun.cli.options import SAMPLING_NAMES
from edgerun.errors import EdgerunError, FormatError
from edgerun.options import SAMPLING
from edgerun.paths import replace_file


@dataclass(frozen=True)
class SavedChat:
    """What is kept of a chat. `options`: of sampling, checked."""

    model: str
    options: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]]


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
    said = [{"role": message["role"], "content": message["content"]} for message in messages]
    return SavedChat(str(content.get("model", "")), checked, said)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
