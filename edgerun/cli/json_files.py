"""JSON files that a user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, FormatError, NotFoundError

MOST_BYTES = 256 << 20


def read_json(path: Path, what: str) -> Any:
    """What stands in the file, which should be `what`. NotFoundError, EdgerunError where it cannot be read, FormatError
    where it is no JSON, too large, nested too deep, or has numbers of thousands of digits."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FormatError(f"{path}: larger than {MOST_BYTES >> 20} MiB: not {what}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise EdgerunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: not {what}: {error}") from error
