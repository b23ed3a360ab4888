"""One prompt, one reply, on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.cli.interrupt import cancelled_by_ctrl_c
from edgerun.cli.output import ReplyPrinter, note, print_json
from edgerun.cli.progress import ProgressBars
from edgerun.cli.stats import ReplyMeter, measures_line, stats_dict, stats_line
from edgerun.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from edgerun.api import LLM, CancelToken, Chunk
    from edgerun.cli.chat import Chat


@dataclass(frozen=True)
class Request:
    """What to answer (`chats`) or to continue; without text the model begins one. `options`: of sampling;
    `variables`: of the chat template."""

    text: str
    chats: bool
    system: str | None
    options: Mapping[str, Any]
    variables: Mapping[str, Any]
    chat: Chat | None = None  # of which this is the next message
    kept: Path | None = None  # where it is kept


def answer_once(llm: LLM, request: Request, bars: ProgressBars, *, stats: bool, as_json: bool, load_s: float) -> None:
    """Print the reply as it comes, or as one JSON object; then the chat that it belongs to is kept. Raises Cancelled
    after Ctrl-C."""
    completion, printer = None, ReplyPrinter()
    meter = ReplyMeter(llm)
    with cancelled_by_ctrl_c() as cancel:
        bars.waiting("reading")
        for chunk in _stream(llm, request, cancel):
            bars.arrived()
            meter.arrived()
            if not as_json:
                printer.print(chunk)
            completion = chunk.completion or completion
    assert completion is not None, "a stream ends with its completion"
    measures = meter.measures(completion)
    if as_json:
        answer = {"text": completion.text, "finish_reason": completion.finish_reason, "seed": completion.seed}
        if completion.reasoning:
            answer["reasoning"] = completion.reasoning
        print_json({"model": llm.name, **answer, **stats_dict(completion, load_s), **measures})
    else:
        printer.end()
    if stats:
        note(stats_line(completion, load_s))
        note(measures_line(measures))
    if request.chat is not None and request.kept is not None:
        request.chat.save(request.kept)
    if completion.finish_reason == "cancelled":
        raise Cancelled("interrupted")


def _stream(llm: LLM, request: Request, cancel: CancelToken) -> Iterator[Chunk]:
    if request.chat is not None:
        return request.chat.reply(request.text, cancel)
    if not request.chats:
        return llm.stream(request.text or _beginning(llm), cancel=cancel, **request.options)
    messages = [] if request.system is None else [{"role": "system", "content": request.system}]
    messages.append({"role": "user", "content": request.text})
    return llm.stream_chat(messages, template_variables=request.variables, cancel=cancel, **request.options)


def _beginning(llm: LLM) -> list[int]:
    """The token that every text begins with. UsageError for models that know none."""
    bos = llm.engine.tokenizer.bos_id
    if bos is None:
        raise UsageError("nothing to continue: this model has no token that begins a text; give a PROMPT")
    return [bos]
