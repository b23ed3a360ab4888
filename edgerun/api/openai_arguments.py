"""What OpenAI's and llama-cpp-python's callers pass, in terms of what edgerun has.

An argument that means something here is translated; one that does not is accepted while it asks for nothing (its
default there, or None), and else refused by name: an answer that quietly ignores half of the question is a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgerun.engine import LogitsProcessor, SamplingParams
from edgerun.engine.arguments import checked_tools, checked_variables
from edgerun.errors import UsageError
from edgerun.options import (
    THINK,
    Flag,
    Kind,
    Text,
    Whole,
    as_text,
    as_whole,
    items_of,
    refused,
    shown,
    thinking_variables,
)

Processors = LogitsProcessor | Sequence[LogitsProcessor]

_GRAMMARS = "edgerun has no grammars yet, so it cannot promise a form; ask for it in the prompt and parse the answer"
# argument -> (values besides None that ask for nothing, why the others are refused)
_NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "tfs_z": ((1.0,), "there is no tail-free sampling; min_p does what it was for"),
    "mirostat_mode": ((0,), "there is no mirostat; use temperature, top_p or min_p"),
    "mirostat_tau": ((5.0,), "there is no mirostat"),
    "mirostat_eta": ((0.1,), "there is no mirostat"),
    "grammar": ((), _GRAMMARS),
    "suffix": ((), "models are not asked to fill in the middle; write the prompt in the model's own format"),
    "stopping_criteria": ((), "use stop, max_tokens or cancel, or stream and close the iterator"),
    "n": ((1,), "one answer a call; call again with another seed"),
    "best_of": ((1,), "one answer a call; call again and compare with score()"),
}


def refuse_others(arguments: Mapping[str, object]) -> None:
    """UsageError for an argument that edgerun has no meaning for and that asks for something."""
    for name, value in arguments.items():
        neutral, why = _NEUTRAL[name]
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value in neutral):
            continue
        allowed = " or ".join([*map(str, neutral), "None"])
        raise UsageError(f"{name} must be {allowed}, got {shown(value)}: {why}")


def sampling_params(
    *,
    max_tokens: object,
    top_k: object,
    seed: object,
    stop: Any,
    logit_bias: Any,
    logits_processor: object,
    **same: Any,
) -> SamplingParams:
    """`same`: what is called and means the same here. UsageError for what cannot be."""
    return SamplingParams(
        max_tokens=_unless_below("max_tokens", max_tokens, 1, None),
        top_k=_unless_below("top_k", top_k, 1, 0),
        seed=_unless_below("seed", seed, 0, None),
        stop=() if stop is None else stop,
        logit_bias={} if logit_bias is None else logit_bias,
        processors=_processors(logits_processor),
        **same,
    )


def chosen_limit(max_tokens: object, max_completion_tokens: object) -> object:
    """OpenAI's new name and the old one. UsageError where both are given and differ."""
    if max_completion_tokens is None:
        return max_tokens
    if max_tokens is not None and max_tokens is not max_completion_tokens:
        raise UsageError("max_tokens and max_completion_tokens mean the same; give one of them")
    return max_completion_tokens


def check_format(response_format: object) -> None:
    """UsageError for any form but text."""
    if response_format is None:
        return
    kind = as_text(response_format.get("type")) if isinstance(response_format, Mapping) else None
    if kind in ("json_object", "json_schema"):
        raise UsageError(f'response_format must be {{"type": "text"}} or None, got type "{kind}": {_GRAMMARS}')
    if kind != "text":
        raise refused("response_format", 'a mapping with the type "text", or None', response_format)


def chosen_tools(
    tools: object, tool_choice: object, functions: object, function_call: object
) -> list[Mapping[str, Any]] | None:
    """What the template is told of tools. `functions` and `function_call` are the older words for the same.

    UsageError for a choice that obliges the model: it decides by itself whether to call one."""
    if functions is not None:
        if tools is not None:
            raise UsageError("functions and tools mean the same; give one of them")
        given = items_of(functions)
        if given is None or not all(isinstance(each, Mapping) for each in given):
            raise refused("functions", "a list of mappings with a name, a description and parameters", functions)
        tools = [{"type": "function", "function": each} for each in given]
    wanted = True
    for name, choice in (("tool_choice", tool_choice), ("function_call", function_call)):
        if choice is None or as_text(choice) == "auto":
            continue
        if as_text(choice) != "none":
            raise refused(name, f'"auto", "none" or None ({_GRAMMARS})', choice)
        wanted = False
    checked = checked_tools(tools)
    return checked if wanted else None


def chosen_variables(variables: Any, reasoning_effort: object) -> Any:
    """What the template gets by name, `reasoning_effort` as it calls that. Variables go before it."""
    if reasoning_effort is None:
        return variables
    effort = thinking_variables(THINK.check("reasoning_effort", reasoning_effort))
    return {**effort, **checked_variables(variables)}


def wants_usage(stream: bool, stream_options: object) -> bool:
    """Whether a stream shall end with a chunk that has the token counts."""
    if stream_options is None:
        return False
    if not stream:
        raise UsageError("stream_options needs stream=True")
    if not isinstance(stream_options, Mapping) or set(stream_options) - {"include_usage", "include_obfuscation"}:
        raise refused("stream_options", "a mapping with include_usage", stream_options)
    if Flag().check("stream_options: include_obfuscation", stream_options.get("include_obfuscation", False)):
        raise UsageError("stream_options: include_obfuscation must be False: chunks are sent as they are")
    return Flag().check("stream_options: include_usage", stream_options.get("include_usage", False))


def chat_logprobs(logprobs: object, top_logprobs: object) -> int | None:
    """How many alternatives `SamplingParams.logprobs` shall report; None: no log-probabilities."""
    top = optional(Whole(0), "top_logprobs", top_logprobs)
    if not optional(Flag(), "logprobs", logprobs):
        if top:
            raise UsageError("top_logprobs needs logprobs=True")
        return None
    return top or 0


def answer_name(model: object, own: str) -> str:
    """The name that stands in the answer."""
    return optional(Text(), "model", model) or own


def check_user(user: object) -> None:
    """Whose call it is; nobody here looks at it."""
    if user is not None and as_text(user) is None:
        raise refused("user", "a text or None", user)


def optional(kind: Kind, name: str, value: object) -> Any:
    """As `kind` has it; None stays."""
    return None if value is None else kind.check(name, value)


def _unless_below(name: str, value: object, low: int, instead: int | None) -> Any:
    """Numbers below `low` and None mean "all" or "any" there, which is written `instead` here."""
    number = as_whole(value)
    return instead if value is None or (number is not None and number < low) else value


def _processors(given: object) -> Any:
    if given is None:
        return ()
    # llama-cpp-python's LogitsProcessorList is a list that can also be called: its items do.
    return (given,) if callable(given) and not isinstance(given, Sequence) else given
