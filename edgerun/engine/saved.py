"""Sessions in files: the chat, the token ids, and their keys and values, so that nothing has to be computed again.

A file is what `formats.checked_tensors` writes: in its header the messages and what the keys and values were computed
from and by; `ids` (n,) i32; and the arrays that `kv` writes for the first `cached` of them. What a session says follows
from its keys and values, so they count only where the same file of the model, the same kernels and the same way of
keeping them would have made the same, and where nobody else can have written them (`trust`). Otherwise they are
computed again, from the ids or from the messages, and a notice says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgerun.engine.arguments import checked_messages
from edgerun.engine.context import Context
from edgerun.engine.engine import Engine
from edgerun.engine.parts import Message
from edgerun.errors import ContextLengthError, EdgerunError, FormatError, UnsupportedError, UntrustedError, UsageError
from edgerun.events import Notice
from edgerun.formats.checked_tensors import CheckedTensors, Form, is_tensor_file, tensor_file
from edgerun.options import as_whole
from edgerun.paths import replace_file
from edgerun.trust import open_folder

KIND = "an edgerun session"
VERSION = 1
_IDS = "ids"


@dataclass(frozen=True)
class SavedSession:
    """What a session is, but for keys and values. ids: all; cached: how many of them have keys and values (and of
    these `stepped` in a prompt's whole steps); left: how many messages the model sees no more."""

    messages: Sequence[Message]
    left: int
    ids: Sequence[int]
    cached: int
    stepped: int


def write_session(path: Path, engine: Engine, context: Context, session: SavedSession) -> None:
    """Under the name stands the old file or the whole new one. `context` holds the first `cached` ids and is nobody
    else's. EdgerunError when the file cannot be written, UsageError for messages that JSON cannot hold."""
    ids = np.array(session.ids, "<i4")
    kept, arrays = context.saved()
    forms: dict[str, Form] = {_IDS: ("I32", ids.shape), **kept}
    header = {
        "file": engine.identity.file,
        "header": engine.identity.header,
        "arithmetic": engine.arithmetic,
        "messages": list(session.messages),
        "left": session.left,
        "cached": session.cached,
        "stepped": session.stepped,
    }
    pieces = tensor_file(KIND, VERSION, header, forms, {_IDS: ids, **arrays}.__getitem__)
    try:
        replace_file(path, pieces)
    except OSError as error:
        if isinstance(error, EdgerunError):
            raise
        raise EdgerunError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_session(path: Path, engine: Engine, context: Context) -> SavedSession:
    """What was written; `context` holds the first `cached` ids, none of them where a notice says why.

    NotFoundError, FormatError (no such file, damaged), UnsupportedError (another version; another model, and no
    messages), ContextLengthError (more tokens than the context has, and no messages), DoesNotFitError.
    """
    with CheckedTensors(path, KIND, VERSION) as file:
        session = _read(file)
        reason = _other(file, engine, session)
        if reason is not None:
            if not session.messages:
                raise reason
            session = SavedSession(session.messages, session.left, (), 0, 0)
        elif session.cached:
            reason = _restore(file, engine, context, session)
        if reason is None:
            return session
    engine.events(Notice(f"{path}: the session is computed again: {reason}"))
    return SavedSession(session.messages, session.left, session.ids, 0, 0)


def is_session(path: Path) -> bool:
    """Whether a file is a session, of whatever version."""
    return is_tensor_file(path, KIND)


def _read(file: CheckedTensors) -> SavedSession:
    """What stands in the file. FormatError for what cannot be."""
    form = file.forms.get(_IDS)
    if form is None or form[0] != "I32" or len(form[1]) != 1:
        raise FormatError(f"{file.path}: not {KIND}: it has no ids")
    ids = file.read(_IDS).tolist()
    said = file.header
    try:
        messages = checked_messages(said.get("messages")) if said.get("messages") != [] else []
    except UsageError as error:
        raise FormatError(f"{file.path}: not {KIND}: {error}") from error
    left, cached, stepped = (as_whole(said.get(name)) for name in ("left", "cached", "stepped"))
    if left is None or cached is None or stepped is None or not (0 <= left <= len(messages)):
        raise FormatError(f"{file.path}: not {KIND}: it does not say what it holds")
    if not 0 <= stepped <= cached <= len(ids) or any(token < 0 for token in ids):
        raise FormatError(f"{file.path}: not {KIND}: it holds {cached} of {len(ids)} tokens")
    return SavedSession(messages, left, ids, cached, stepped)


def _other(file: CheckedTensors, engine: Engine, session: SavedSession) -> EdgerunError | None:
    """Why the ids mean nothing here; None: they do."""
    if file.header.get("header") != engine.identity.header or any(id_ >= engine.vocab_size for id_ in session.ids):
        return UnsupportedError(f"{file.path} was saved with another model")
    if len(session.ids) > engine.context:
        return ContextLengthError(
            f"{file.path} has {len(session.ids)} tokens, the context {engine.context}; load the model with a larger one"
        )
    return None


def _restore(file: CheckedTensors, engine: Engine, context: Context, session: SavedSession) -> EdgerunError | None:
    """Read keys and values; or why they do not count."""
    if file.header.get("file") != engine.identity.file:
        return UnsupportedError("the model's file is not the one that it was saved with, or was written to since")
    if file.header.get("arithmetic") != engine.arithmetic:
        return UnsupportedError("it was saved by other kernels, with another --kv or --prefill, or by another edgerun")
    try:
        _check_trusted(file.path)
        forms = {name: form for name, form in file.forms.items() if name != _IDS}
        context.restore(session.ids[: session.cached], session.stepped, forms, file.read)
    except (UntrustedError, UnsupportedError) as error:
        return error
    return None


def _check_trusted(path: Path) -> None:
    """UntrustedError when somebody else may have written the file."""
    try:
        with open_folder(path.absolute().parent) as folder:
            folder.check(path.name)
    except UntrustedError:
        raise
    except OSError as error:
        raise UntrustedError(f"who may have written {path} cannot be found out: {error}") from error
