"""Starting threads that only make sense together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from edgerun.errors import DoesNotFitError


def start_all(threads: Sequence[threading.Thread], stop: Callable[[], None]) -> None:
    """Start all of them, or none: where the system gives no more, `stop` is called, which must end and join those that
    run already. Raises DoesNotFitError; an interrupt in between stops them too."""
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        stop()
        raise DoesNotFitError(
            f"the system gives this process no more threads ({len(threads)} were needed: {error}); "
            "use fewer threads, or raise the limit (ulimit -u)"
        ) from error
    except BaseException:
        stop()
        raise
