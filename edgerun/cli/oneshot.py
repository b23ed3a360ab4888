"""One prompt, one reply, on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.interrupt import cancelled_by_ctrl_c
from edgerun.cli.output import note, print_json
from edgerun.cli.stats import stats_dict, stats_line
from edgerun.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from edgerun.api import LLM, CancelToken, Chunk


def answer_once(
    llm: LLM,
    text: str,
    *,
    chats: bool,
    system: str | None,
    options: Mapping[str, Any],
    stats: bool,
    as_json: bool,
    load_s: float,
) -> None:
    """Print the reply as it comes, or as one JSON object. Raises Cancelled after Ctrl-C."""
    with cancelled_by_ctrl_c() as cancel:
        completion = None
        said = ""
        for chunk in _stream(llm, text, chats, system, options, cancel):
            said = chunk.text or said
            completion = chunk.completion or completion
            if not as_json and chunk.text:
                click.echo(chunk.text, nl=False)
                sys.stdout.flush()
    assert completion is not None, "a stream ends with its completion"
    if as_json:
        print_json(
            {
                "model": llm.name,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "seed": completion.seed,
                **stats_dict(completion, load_s),
            }
        )
    elif not said.endswith("\n"):
        click.echo()
    if stats:
        note(stats_line(completion, load_s))
    if completion.finish_reason == "cancelled":
        raise Cancelled("interrupted")


def _stream(
    llm: LLM, text: str, chats: bool, system: str | None, options: Mapping[str, Any], cancel: CancelToken
) -> Iterator[Chunk]:
    if chats:
        messages = [] if system is None else [{"role": "system", "content": system}]
        return llm.stream_chat([*messages, {"role": "user", "content": text}], cancel=cancel, **options)
    return llm.stream(text or beginning(llm), cancel=cancel, **options)


def beginning(llm: LLM) -> list[int]:
    """The token that every text begins with. UsageError for models that know none."""
    bos = llm.engine.tokenizer.bos_id
    if bos is None:
        raise UsageError("nothing to continue: this model has no token that begins a text; give a PROMPT")
    return [bos]
