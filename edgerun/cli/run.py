"""`edgerun run` and `edgerun chat`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from edgerun.cli.loading import find_model, load_model
from edgerun.cli.options import ModelOptions, json_option, model_options, sampling_from, sampling_options
from edgerun.cli.output import note
from edgerun.cli.progress import ProgressBars

DEFAULT_MODEL = "default"
_STDIN_PATIENCE_S = 2.0


@click.command(short_help="Talk to a model, or have it continue a text.")
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="How the model should behave.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the model's chat format.")
@sampling_options
@model_options
@click.option("--stats", is_flag=True, help="Report counts and rates on stderr.")
@json_option
def command(
    model: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    context: int | None,
    threads: int | None,
    kernels: str,
    stats: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Talk to MODEL: a GGUF file, an alias, or org/repo:quant (downloaded when it is not here). Without MODEL
    the one that comes with edgerun is used.

    On a terminal this is a chat; /help there lists its commands. With a PROMPT, or text on stdin (appended to
    PROMPT), the model answers that once: the result alone is on stdout. A model without a chat template
    continues the text; without any text it begins one by itself.
    """
    if model is not None and prompt is None and " " in model.strip() and not Path(model).exists():
        model, prompt = None, model  # no model's name has spaces: `edgerun run "Once upon a time"`
    piped = _read_stdin(model, prompt)
    text = "\n\n".join(part for part in (prompt, piped) if part)
    interactive = not text and not as_json and sys.stdin.isatty() and sys.stdout.isatty()
    options = sampling_from(sampling)
    with ProgressBars() as bars:
        path = find_model(model or DEFAULT_MODEL, bars)
        chats = not raw and _chats(path)
        _check(text, system, chats, raw, interactive)
        started = time.perf_counter()
        llm = load_model(path, ModelOptions(context, threads, kernels), bars)
    with llm:
        load_s = time.perf_counter() - started
        if interactive:
            from edgerun.cli.chat import Chat, talk

            talk(Chat(llm, name=path.stem if model is None or path == Path(model) else model, chats=chats, options=options, system=system, stats=stats))
            return
        from edgerun.cli.oneshot import answer_once

        answer_once(
            llm,
            text,
            chats=chats,
            system=system,
            options=options,
            stats=stats,
            as_json=as_json,
            load_s=load_s,
        )


def _read_stdin(model: str | None, prompt: str | None) -> str:
    """What is piped in, "" on a terminal. A `-` as PROMPT waits for it in any case."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    if (prompt is not None or model is None) and not _stdin_ready():
        note("nothing came on stdin, going on without it (give it as </dev/null to save the wait)")
        return ""
    return sys.stdin.read().strip("\n")


def _stdin_ready() -> bool:
    """Whether stdin has something, or its end, within a moment: a service may have left it open for ever."""
    import select

    try:
        return bool(select.select([sys.stdin], [], [], _STDIN_PATIENCE_S)[0])
    except (OSError, ValueError):  # not a file that can be waited for: reading it will not block either
        return True


def _chats(path: Path) -> bool:
    from edgerun.hub.info import has_chat_template

    return has_chat_template(path)


def _check(text: str, system: str | None, chats: bool, raw: bool, interactive: bool) -> None:
    from edgerun.errors import UsageError

    if system is not None and not chats:
        why = "--raw leaves the chat format out" if raw else "the model has no chat template"
        raise UsageError(f"--system needs a chat: {why}")
    if chats and not text and not interactive:
        raise UsageError("nothing to answer: give a PROMPT, or text on stdin")
