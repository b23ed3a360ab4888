"""The formats of replies that models were trained on, and which one a model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgerun.text.replies.bodies import (
    bare_json_body,
    divided_body,
    gemma_body,
    invoke_body,
    json_body,
    named_json_body,
    python_body,
    seed_body,
    tagged_body,
)
from edgerun.text.replies.ends import in_gemmas_quotes, in_json, in_parameter, in_python, in_tagged
from edgerun.text.replies.messages import MessageFormat, harmony_addressee, muse_addressee
from edgerun.text.replies.tags import CallMarks, Reasoning, TagFormat

ReplyFormat = TagFormat | MessageFormat

_THINK = Reasoning("<think>", "</think>")
_REASONING = (  # by what stands in a template
    Reasoning("<|channel>thought", "<channel|>", anywhere=True),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    _THINK,
)
_MUSE_CALLS = CallMarks(
    "<atem:function_calls>", "</atem:function_calls>", invoke_body("atem:"), is_within=in_parameter("atem:")
)
_DSML = "｜DSML｜"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_argument_begin|>")

_MESSAGES: Mapping[str, MessageFormat] = {
    "harmony": MessageFormat("harmony", ("<|end|>", "<|call|>", "<|return|>"), harmony_addressee),
    "muse": MessageFormat("muse", ("<|eom|>", "<|eot|>"), muse_addressee, TagFormat("muse", calls=(_MUSE_CALLS,))),
}
_CALLS: Mapping[str, TagFormat] = {  # what a template or vocabulary shows -> the calls that it means
    "<|tool_call>": TagFormat(
        "gemma4",
        calls=(CallMarks("<|tool_call>", "<tool_call|>", gemma_body, is_within=in_gemmas_quotes),),
        inside=('<|"|>', "<|channel>"),
    ),
    "<|tool_call_start|>": TagFormat(
        "lfm2", calls=(CallMarks("<|tool_call_start|>", "<|tool_call_end|>", python_body, is_within=in_python),)
    ),
    "[TOOL_CALLS]": TagFormat(
        "mistral", calls=(CallMarks("[TOOL_CALLS]", "", named_json_body),), inside=("[ARGS]", "[CALL_ID]")
    ),
    _DSML: TagFormat(
        "dsml",
        calls=(
            CallMarks(
                f"<{_DSML}function_calls>",
                f"</{_DSML}function_calls>",
                invoke_body(_DSML),
                is_within=in_parameter(_DSML),
            ),
        ),
        inside=(_DSML,),
    ),
    "<｜tool▁call▁begin｜>": TagFormat(
        "deepseek",
        calls=(
            CallMarks(
                "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", divided_body("<｜tool▁sep｜>"), is_within=in_json
            ),
        ),
        around=_DEEPSEEK[:2],
        inside=_DEEPSEEK[2:],
    ),
    "<|tool_call_begin|>": TagFormat(
        "kimi",
        calls=(
            CallMarks(
                "<|tool_call_begin|>",
                "<|tool_call_end|>",
                divided_body("<|tool_call_argument_begin|>"),
                is_within=in_json,
            ),
        ),
        around=_KIMI[:2],
        inside=_KIMI[2:],
    ),
    "<minimax:tool_call>": TagFormat(
        "minimax",
        calls=(CallMarks("<minimax:tool_call>", "</minimax:tool_call>", invoke_body(""), is_within=in_parameter("")),),
    ),
    "<seed:tool_call>": TagFormat(
        "seed", calls=(CallMarks("<seed:tool_call>", "</seed:tool_call>", seed_body, is_within=in_tagged),)
    ),
    "<|START_ACTION|>": TagFormat(
        "command", calls=(CallMarks("<|START_ACTION|>", "<|END_ACTION|>", json_body, is_within=in_json),)
    ),
    "<TOOLCALL>": TagFormat(  # Nemotron Nano 2
        "toolcall", calls=(CallMarks("<TOOLCALL>", "</TOOLCALL>", json_body, is_within=in_json),)
    ),
    "<|function_call|>": TagFormat("gigachat", calls=(CallMarks("<|function_call|>", "", json_body),)),
    "<|tool_call|>": TagFormat(  # Granite 3, Phi 4 mini
        "tool_call|", calls=(CallMarks("<|tool_call|>", "", json_body),), around=("<|/tool_call|>",)
    ),
    "<tool_call>": TagFormat(
        "tool_call",
        calls=(CallMarks("<tool_call>", "</tool_call>", tagged_body, is_within=in_tagged),),
        inside=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    '{"name": function name, "parameters"': TagFormat(
        "llama3", calls=(CallMarks("{", "", bare_json_body, first=True, between=";"),), around=("<|python_tag|>",)
    ),
}


def find_reply_format(template: str, has_token: Callable[[str], bool]) -> ReplyFormat | None:
    """The format of a model with this chat template and these tokens; None: its replies are nothing but answers."""
    if "<atem:function_calls>" in template and "to=self" in template:
        return _MESSAGES["muse"]
    if "<|channel|>" in template and "<|message|>" in template:
        return _MESSAGES["harmony"]
    reasoning = next((each for each in _REASONING if each.end in template), None)
    calls = next((each for mark, each in _CALLS.items() if mark in template), None)
    if calls is None and has_token("<|tool_call_start|>"):  # LFM 2's template does not write them
        calls = _CALLS["<|tool_call_start|>"]
    if calls is None and reasoning is None:
        return None
    found = calls or TagFormat("reasoning")
    return TagFormat(found.name, reasoning, found.calls, found.around, found.inside)
