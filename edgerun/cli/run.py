"""`edgerun run` and `edgerun chat`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.loading import ClusterChoice, find_model, load_model
from edgerun.cli.options import (
    chat_options,
    cluster_options,
    context_shift_option,
    draft_option,
    json_option,
    loading_from,
    model_options,
    power_options,
    prompt_options,
    sampling_from,
    sampling_options,
    streaming_options,
    trace_option,
)
from edgerun.cli.progress import ProgressBars
from edgerun.cli.routing import recorded_routing
from edgerun.cli.saved_chat import chat_path, not_ours
from edgerun.cli.stdin import Stdin, checked_text
from edgerun.cli.trace_file import traced
from edgerun.options import thinking_variables
from edgerun.paths import kind_of

if TYPE_CHECKING:
    from edgerun.api import LLM
    from edgerun.cli.chat import Chat

DEFAULT_MODEL = "default"
_STORY = "Tell me a story."


@click.command(short_help="Talk to a model, or have it continue a text.")
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="How the model should behave.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the model's chat format.")
@sampling_options
@model_options
@streaming_options
@prompt_options
@power_options
@context_shift_option
@chat_options
@draft_option
@cluster_options
@click.option(
    "--session", metavar="NAME", help="Go on with the chat that is kept as NAME (or a path.json), and keep it."
)
@trace_option
@click.option("--stats", is_flag=True, help="Report counts and rates on stderr.")
@json_option
def command(
    model: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    context_shift: bool | None,
    session: str | None,
    think: str | None,
    record_routing: Path | None,
    overwrite: bool,
    cluster: bool,
    allreduce: str | None,
    wire: str | None,
    same_tokens: bool | None,
    all_devices: bool,
    trace_path: Path | None,
    stats: bool,
    as_json: bool,
    **loading_and_sampling: Any,
) -> None:
    """Talk to MODEL: a GGUF file, an alias, or org/repo:quant (downloaded when it is not here). Without MODEL
    the one that comes with edgerun is used.

    On a terminal this is a chat; /help there lists its commands. With a PROMPT, or text on stdin (appended to
    PROMPT; - as PROMPT waits for it), the model answers that once: the result alone is on stdout. A model
    without a chat template continues the text; without any text it begins one by itself. The model that comes with
    edgerun tells a story when it is asked nothing. `edgerun chat` without PROMPT takes each line on stdin as a
    message, as on a terminal.
    """
    if model is not None and prompt is None and " " in model.strip() and not Path(model).exists():
        model, prompt = None, model  # no model's name has spaces: `edgerun run "Once upon a time"`
    by_line = click.get_current_context().info_name == "chat" and prompt is None and not as_json
    stdin = Stdin(needed=prompt == "-" or (prompt is None and model is not None))
    given = "" if prompt is None or prompt == "-" else checked_text(prompt)
    options = sampling_from(loading_and_sampling)
    group = ClusterChoice.of(cluster, allreduce, wire, same_tokens, all_devices)
    with ProgressBars() as bars:
        path = find_model(DEFAULT_MODEL if model is None else model, bars)
        chats = not raw and _chats(path)
        interactive = prompt is None and not as_json and stdin.is_terminal and sys.stdout.isatty()
        by_line = by_line and stdin.is_pending
        _check_chats("--system", system, chats, raw)
        _check_chats("--session", session, chats, raw)
        _check_chats("--think", think, chats, raw)
        variables = {} if think is None else thinking_variables(think)
        kept = None if session is None else chat_path(session)
        text = "" if interactive or by_line else _joined(given, stdin.read_now())
        if model is not None and not stdin.is_pending:
            _check_text(text, chats, interactive)
        started = time.perf_counter()
        loading = loading_from(loading_and_sampling, bars)
        is_chat = interactive or by_line or kept is not None
        loading["context_shift"] = is_chat if context_shift is None else context_shift
        with (
            load_model(path, loading, group) as llm,
            recorded_routing(llm, record_routing, overwrite=overwrite),
            traced(llm, trace_path, overwrite=overwrite),
        ):
            load_s = time.perf_counter() - started
            name = path.stem if model is None or path == Path(model) else model
            chat = (
                _chat(
                    llm, kept, name=name, chats=chats, options=options, system=system, stats=stats, variables=variables
                )
                if is_chat
                else None
            )
            if chat is not None and (interactive or by_line):
                from edgerun.cli.chat_input import PipedReader
                from edgerun.cli.talk import talk

                if not talk(chat, bars, kept, PipedReader() if by_line else None) and by_line:
                    raise click.exceptions.Exit(1)
                return
            from edgerun.cli.oneshot import Request, answer_once

            text = _joined(text, stdin.read_late())
            if model is None and not text and chats:
                text = _STORY  # what the model that comes with edgerun is there for
            _check_text(text, chats, interactive)
            request = Request(text, chats, system, options, variables, chat, kept)
            answer_once(llm, request, bars, stats=stats, as_json=as_json, load_s=load_s)


def _joined(first: str, second: str) -> str:
    return "\n\n".join(part for part in (first, second) if part)


def _chats(path: Path) -> bool:
    from edgerun.hub.info import has_chat_template

    return has_chat_template(path)


def _chat(llm: LLM, kept: Path | None, *, options: dict[str, Any], system: str | None, **more: Any) -> Chat:
    """A chat that begins, or the one that was kept. What this command says of it goes before what was said then."""
    from edgerun.cli.chat import Chat
    from edgerun.errors import UsageError

    chat = Chat(llm, options=options, **more)
    if kept is not None and kind_of(kept):
        chat.load(kept)
        chat.options = {**chat.options, **options}
    for path in [] if kept is None else not_ours(kept):
        raise UsageError(f"{path} is not a saved chat; give another name")
    if system is not None:
        chat.system = system
    return chat


def _check_chats(option: str, value: str | None, chats: bool, raw: bool) -> None:
    from edgerun.errors import UsageError

    if value is not None and not chats:
        why = "--raw leaves the chat format out" if raw else "the model has no chat template"
        raise UsageError(f"{option} needs a chat: {why}")


def _check_text(text: str, chats: bool, interactive: bool) -> None:
    from edgerun.errors import UsageError

    if chats and not text and not interactive:
        raise UsageError("nothing to answer: give a PROMPT, or text on stdin")
