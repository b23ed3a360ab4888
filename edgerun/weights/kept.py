"""What a run of a model keeps in the cache directory for the next one, and how that reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgerun.errors import FormatError, UntrustedError
from edgerun.events import EventSink, Notice
from edgerun.paths import kept_folder

T = TypeVar("T")


def parsed_kept(path: Path, parse: Callable[[bytes], T], *, most_bytes: int, what: str, events: EventSink) -> T | None:
    """What `parse` makes of a file of the cache of at most so many bytes; None when there is none. One of which it says
    FormatError is damaged, and is dropped with a Notice; one that others can have written is left alone, with a Notice.
    what: is in it, as both of them say."""
    try:
        with kept_folder(path.parent) as folder:
            try:
                return parse(folder.read(path.name, most_bytes))
            except FormatError as error:
                events(Notice(f"{what} is dropped: {path} is damaged ({error})"))
                with contextlib.suppress(OSError):  # then it is replaced by the next one, or found so again
                    folder.remove(path.name)
    except UntrustedError as error:
        events(Notice(f"{what} is not used: {error}"))
    except OSError:
        return None  # as where there is none
    return None
