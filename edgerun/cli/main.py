"""The `edgerun` program: its commands, and where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from edgerun import __version__
from edgerun.cli.lazy_group import LazyGroup
from edgerun.cli.output import note
from edgerun.errors import DoesNotFitError, EdgerunError

COMMANDS = {
    "run": ("run", "Talk to a model, or have it continue a text."),
    "chat": ("run", "The same as run."),
    "pull": ("pull", "Download a model."),
    "list": ("list_models", "List the models that are here."),
    "show": ("show", "Describe a model file."),
    "rm": ("rm", "Delete downloaded models."),
    "plan": ("plan", "Will a model fit, and how fast will it be."),
    "pack": ("pack", "Lay a model out on disk for faster streaming."),
    "calibrate": ("calibrate", "Find the best way to process prompts here."),
    "bench": ("bench", "Measure how fast a model is."),
    "profile": ("profile", "Where a model's time, bytes and joules go."),
    "cluster": ("cluster", "Run a model on several devices at home."),
    "doctor": ("doctor", "Check this machine and prepare the kernels."),
    "convert": ("convert", "Make a GGUF file from a checkpoint."),
    "quantize": ("quantize", "Make a GGUF file of another type."),
    "tokenize": ("tokenize", "Show the tokens of a text."),
}
_INTERRUPTED = 130
_GARBAGE = 50_000  # new objects before Python looks for circles among them


class Program(LazyGroup):
    """All commands, and the one place that turns errors into exit codes."""

    table = COMMANDS

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = False,
        **extra: Any,
    ) -> Any:
        """Run, and leave by SystemExit: 0 ok, 1 error, 2 usage, 3 not found, 4 does not fit, 5 network,
        130 interrupted."""
        arguments = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments[:1]
        try:
            code = super().main(arguments, prog_name or "edgerun", complete_var, standalone_mode=False, **extra)
            _flush()
            sys.exit(code if isinstance(code, int) else 0)
        except click.ClickException as error:
            with contextlib.suppress(OSError):  # nobody to tell: the code tells
                error.show()
            _drop_unwritten()
            sys.exit(error.exit_code)
        except Terminated as error:
            _leave(str(error), 128 + error.number, debug)
        except (KeyboardInterrupt, click.Abort):
            _leave("interrupted", _INTERRUPTED, debug)
        except BrokenPipeError:
            _drop_unwritten()
            sys.exit(1)
        except EdgerunError as error:
            _leave(str(error), error.exit_code, debug)
        except MemoryError as error:
            _leave(str(error) or "out of memory", DoesNotFitError.exit_code, debug)
        except OSError as error:
            _leave(str(error), 1, debug)


class Terminated(SystemExit):
    """A signal asks the program to end: what is open is closed and put in order on the way out.

    It is a SystemExit since event loops keep every other exception of a callback to themselves (asyncio lets only this
    and KeyboardInterrupt through), and the signal may arrive while the prompt is just being drawn in one."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


def _terminate(number: int, frame: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the way out shall not be cut short
    raise Terminated(number)


def _terminate_once_more(unraisable: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised while it clears up an object (`__del__`, a weak reference's callback). Where that was
    a signal's doing, the signal is sent again, a moment later."""
    if isinstance(unraisable.exc_value, Terminated):
        number = unraisable.exc_value.number
        signal.signal(number, _terminate)
    elif isinstance(unraisable.exc_value, KeyboardInterrupt):
        number = signal.SIGINT
    else:
        sys.__unraisablehook__(unraisable)
        return
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def _open_closed_streams() -> bool:
    """Put the null device where a standard stream is closed (`>&-`), so that no other file can get its number, and
    what is written there by anybody ends up in it. Tells whether stdout was closed."""
    stdout_closed = sys.stdout is None
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    return stdout_closed


def _leave(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    with contextlib.suppress(OSError):  # the reader went away, or the terminal did
        note(f"edgerun: {message}")
    _drop_unwritten()
    sys.exit(code)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _drop_unwritten() -> None:
    """What cannot be written, since the reader or the terminal went away or the disk is full, must not fail once more
    while Python shuts down: it would end with 120 then, whatever the code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # not a real file: nothing is written at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@click.command(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 does not fit, 5 network, 130 interrupted.",
)
@click.version_option(__version__, prog_name="edgerun")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def cli(debug: bool) -> None:
    """Run language models on the device you already own.

    `edgerun run` talks to the model that comes with it; `edgerun run PATH` to any GGUF file.
    """


def main() -> NoReturn:
    """The console script."""
    gc.set_threshold(_GARBAGE)  # starting makes objects that stay: looking through them was a fifteenth of its time
    stdout_closed = _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shall not end the reply
            stream.reconfigure(errors="replace")
    if stdout_closed:
        _leave("standard output is closed: there is nowhere to write the result", 1, debug=False)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), _terminate)  # not where somebody (nohup) wants it ignored
    sys.unraisablehook = _terminate_once_more
    cli.main(prog_name="edgerun")
    raise AssertionError("Program.main leaves by SystemExit")
