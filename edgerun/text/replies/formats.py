"""The formats of replies that models were trained on, and which one a model has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from edgerun.text.replies.bodies import (
    bare_json_body,
    divided_body,
    function_body,
    gemma_body,
    identified_body,
    invoke_body,
    json_body,
    keyed_json_body,
    lines_body,
    named_json_body,
    python_body,
    seed_body,
    tagged_body,
)
from edgerun.text.replies.call_stream import CallStream, MappingStyle, OpenStream, TaggedStyle, body_of
from edgerun.text.replies.ends import in_gemmas_quotes, in_json, in_parameter, in_python, in_tagged
from edgerun.text.replies.messages import MessageFormat, harmony_addressee, muse_addressee
from edgerun.text.replies.nested_stream import NestedStyle
from edgerun.text.replies.parts import Tools
from edgerun.text.replies.tags import CallMarks, Reasoning, TagFormat

ReplyFormat = TagFormat | MessageFormat

_WORD = r"[^\s,:=()\[\]{}'\"<>]+"
_JSON_BEGINS = r"\s*(?=\{\s*\"[^\"\\]*\"\s*:)"  # up to a mapping's first value
_OBJECT = MappingStyle(
    re.compile(r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:' + _JSON_BEGINS),
    around="object",
)
_PYTHON = MappingStyle(
    re.compile(rf"\s*\[\s*(?P<name>{_WORD})\s*(?=\(\s*{_WORD}\s*=)"),
    re.compile(rf"\s*(?P<name>{_WORD})\s*(?=\()"),
    ("(", ")", "="),
    "list",
)
_GEMMA = MappingStyle(
    re.compile(rf"\s*call:\s*(?P<name>{_WORD})\s*(?=\{{\s*{_WORD}\s*:)"),
    re.compile(rf"\s*call:\s*(?P<name>{_WORD})\s*(?=\{{)"),
    begins="call:",
)
_NAMED = MappingStyle(
    re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\](?P<id>[\w-]+))?\s*(?:\[ARGS\])?" + _JSON_BEGINS)
)
_FUNCTION = TaggedStyle(
    re.compile(r"\s*<function=(?P<name>[^>\n]+)>"),
    re.compile(r"<parameter=(?P<key>[^>\n]+)>"),
    "</parameter>",
    "</function>",
    ("<function=", "<parameter="),
)
_FUNCTION_BY_LINE = replace(_FUNCTION, by_line=True)
_ARG = TaggedStyle(
    re.compile(r"\s*(?P<name>[\w.:/-]+)\s*(?=<arg_key>)"),
    re.compile(r"<arg_key>(?P<key>[^<]*)</arg_key>\s*<arg_value>"),
    "</arg_value>",
    "",
    ("", "<arg_key>"),
)

_ID_NAME = re.compile(r"\s*(?P<id>[\w.:-]*)\s*<\|tool_call:name\|>(?P<name>[^<\s]+)<\|tool_call:args\|>" + _JSON_BEGINS)
_PARAM = TaggedStyle(
    re.compile(r'\s*name="(?P<name>[^"\n]+)">'),
    re.compile(r'<param name="(?P<key>[^"\n]+)">'),
    "</param>",
    "",
    ("", "<param "),
    quotes=("<![CDATA[", "]]>"),
)
_HY3 = TaggedStyle(
    re.compile(r"\s*(?P<name>[\w.:/-]+)<tool_sep:opensource>"),
    re.compile(r"<arg_key:opensource>(?P<key>[^<]*)</arg_key:opensource>\s*<arg_value:opensource>"),
    "</arg_value:opensource>",
    "",
    ("", "<arg_key:opensource>"),
)
_OPENED = TaggedStyle(
    re.compile(r'\s*tool="(?P<name>[^"\n]+)"(?: index="\d+")?<\|sep\|>'),
    re.compile(r'<\|open\|>argument key="(?P<key>[^"\n]+)" type="(?:(?P<text>string)|\w+)"<\|sep\|>'),
    "<|close|>argument<|sep|>",
    "",
    ("", "<|open|>argument "),
)


def _divided(divider: str) -> OpenStream:
    name = r"\s*(?=(?P<id>functions\.[\w.-]+:\d+)?)(?(id)functions\.|)(?P<name>[^\s<]+?)(?(id):\d+|)\s*"
    return MappingStyle(re.compile(name + re.escape(divider) + _JSON_BEGINS)).open


def _invoke(prefix: str) -> OpenStream:
    mark = re.escape(prefix)
    return TaggedStyle(
        re.compile(rf'\s*<{mark}invoke name="(?P<name>[^"\n]+)">'),
        re.compile(rf'<{mark}parameter name="(?P<key>[^"\n]+)"(?: string="(?P<text>true|false)")?>'),
        f"</{prefix}parameter>",
        f"</{prefix}invoke>",
        (f"<{prefix}invoke ", f"<{prefix}parameter "),
    ).open


def _tagged_stream(text: str, tools: Tools) -> CallStream | None:
    """Of what stands in <tool_call>, in each of `tagged_body`'s three ways."""
    return next(
        (found for style in (_OBJECT, _FUNCTION_BY_LINE, _ARG) if (found := style.open(text, tools)) is not None), None
    )


_THINK = Reasoning("<think>", "</think>")
_REASONING = (  # by what stands in a template
    Reasoning("<|channel>thought", "<channel|>", anywhere=True),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<mm:think>", "</mm:think>"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    _THINK,
)
_MUSE_CALLS = CallMarks(
    "<atem:function_calls>",
    "</atem:function_calls>",
    invoke_body("atem:"),
    is_within=in_parameter("atem:"),
    stream=_invoke("atem:"),
)
_DSML = "｜DSML｜"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>")
_M3 = "]<]minimax[>["
_ELEMENTS = NestedStyle(_M3)
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_argument_begin|>")

_MESSAGES: Mapping[str, MessageFormat] = {
    "harmony": MessageFormat("harmony", ("<|end|>", "<|call|>", "<|return|>"), harmony_addressee),
    "muse": MessageFormat("muse", ("<|eom|>", "<|eot|>"), muse_addressee, TagFormat("muse", calls=(_MUSE_CALLS,))),
}
_TOOL_CALL = TagFormat(
    "tool_call",
    calls=(CallMarks("<tool_call>", "</tool_call>", tagged_body, is_within=in_tagged, stream=_tagged_stream),),
    inside=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
_TOOL_CALLS = TagFormat(
    "tool_calls", calls=(CallMarks("<tool_calls>", "</tool_calls>", lines_body, is_within=in_json),)
)
_CALLS: Mapping[str, TagFormat] = {  # what a template or vocabulary shows -> the calls that it means
    "<|tool_call>": TagFormat(
        "gemma4",
        calls=(CallMarks("<|tool_call>", "<tool_call|>", gemma_body, is_within=in_gemmas_quotes, stream=_GEMMA.open),),
        around=("<channel|>",),  # some end once more what they thought
        inside=('<|"|>', "<|channel>"),
    ),
    "<|tool_call_start|>": TagFormat(
        "lfm2",
        calls=(
            CallMarks(
                "<|tool_call_start|>", "<|tool_call_end|>", python_body, is_within=in_python, stream=_PYTHON.open
            ),
        ),
    ),
    "[TOOL_CALLS]": TagFormat(
        "mistral",
        calls=(CallMarks("[TOOL_CALLS]", "", named_json_body, stream=_NAMED.open),),
        inside=("[ARGS]", "[CALL_ID]"),
    ),
    _DSML: TagFormat(
        "dsml",
        calls=tuple(  # V3.2, V4
            CallMarks(
                f"<{_DSML}{block}>",
                f"</{_DSML}{block}>",
                invoke_body(_DSML),
                is_within=in_parameter(_DSML),
                stream=_invoke(_DSML),
            )
            for block in ("function_calls", "tool_calls")
        ),
        inside=(_DSML,),
        calls_end=True,
    ),
    "<|tools_prefix|>": TagFormat(
        "apertus",
        Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
        (CallMarks("<|tools_prefix|>", "<|tools_suffix|>", keyed_json_body, is_within=in_json),),
    ),
    "HYTK = ':opensource'": TagFormat(
        "hy3",
        Reasoning("<think:opensource>", "</think:opensource>"),
        (CallMarks("<tool_call:opensource>", "</tool_call:opensource>", body_of(_HY3.begin), stream=_HY3.open),),
        ("<tool_calls:opensource>", "</tool_calls:opensource>"),
    ),
    "<|tool_call:begin|>": TagFormat(
        "solar",
        Reasoning("<|think|>", "<|end|>"),
        (
            CallMarks(
                "<|tool_call:begin|>",
                "<|tool_call:end|>",
                identified_body("<|tool_call:name|>", "<|tool_call:args|>"),
                is_within=in_json,
                stream=MappingStyle(_ID_NAME).open,
            ),
        ),
        ("<|begin|>assistant", "<|content|>", "<|tool_calls|>", "<|calls|>", "<|end|>"),
        ("<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>"),
    ),
    "<|end_of_msg|>": TagFormat(
        "kimi3",
        Reasoning("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        (CallMarks("<|open|>call", "<|close|>call<|sep|>", body_of(_OPENED.begin), stream=_OPENED.open),),
        (
            *(f"<|{way}|>{what}<|sep|>" for way in ("open", "close") for what in ("response", "tools")),
            *("<|close|>message<|sep|>", "<|end_of_msg|>"),
        ),
        ("<|open|>", "<|close|>", "<|sep|>"),
        unclosed=("<|open|>response<|sep|>", "<|open|>tools<|sep|>"),
    ),
    "<｜tool▁call▁begin｜>": TagFormat(
        "deepseek",
        calls=(
            CallMarks(
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                divided_body("<｜tool▁sep｜>"),
                is_within=in_json,
                stream=_divided("<｜tool▁sep｜>"),
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
                stream=_divided("<|tool_call_argument_begin|>"),
            ),
        ),
        around=_KIMI[:2],
        inside=_KIMI[2:],
        unclosed=_KIMI[:1],
        calls_end=True,
    ),
    "<minimax:tool_call>": TagFormat(
        "minimax",
        calls=(
            CallMarks(
                "<minimax:tool_call>",
                "</minimax:tool_call>",
                invoke_body(""),
                is_within=in_parameter(""),
                stream=_invoke(""),
            ),
        ),
    ),
    "<seed:tool_call>": TagFormat(
        "seed",
        calls=(
            CallMarks("<seed:tool_call>", "</seed:tool_call>", seed_body, is_within=in_tagged, stream=_FUNCTION.open),
        ),
    ),
    "<|START_ACTION|>": TagFormat(
        "command",
        calls=(CallMarks("<|START_ACTION|>", "<|END_ACTION|>", json_body, is_within=in_json),),
        around=tuple(f"<|{way}_{what}|>" for way in ("START", "END") for what in ("RESPONSE", "TEXT")),
    ),
    "<TOOLCALL>": TagFormat(  # Nemotron Nano 2
        "toolcall", calls=(CallMarks("<TOOLCALL>", "</TOOLCALL>", json_body, is_within=in_json),)
    ),
    "<|function_call|>": TagFormat(
        "gigachat", calls=(CallMarks("<|function_call|>", "", json_body, stream=_OBJECT.open),)
    ),
    "<|role_sep|>": TagFormat(  # of 3.0: a call is a message of its own
        "gigachat3",
        calls=(CallMarks("function call<|role_sep|>", "", json_body, stream=_OBJECT.open),),
        around=("<|message_sep|>",),
        inside=("<|role_sep|>",),
    ),
    "<|tool_call|>": TagFormat(  # Granite 3, Phi 4 mini
        "tool_call|", calls=(CallMarks("<|tool_call|>", "", json_body),), around=("<|/tool_call|>",)
    ),
    _M3: TagFormat(
        "minimax3",
        calls=(CallMarks(f"{_M3}<tool_call>", f"{_M3}</tool_call>", body_of(_ELEMENTS.begin), stream=_ELEMENTS.open),),
        around=("</mm:think>",),  # a reply without reasoning begins so
        inside=(_M3, "<tool_call>", "</tool_call>"),
    ),
    ">>>${recipient}": TagFormat(  # Functionary 3.2
        "recipient",
        around=(">>>all\n",),
        called=lambda name: CallMarks(
            f">>>{name}\n", "", divided_body("\n"), n_kept=len(name) + 1, stream=_divided("\n")
        ),
        begun=">>>",
    ),
    "functools[": TagFormat(  # Firefunction 2
        "functools", calls=(CallMarks("functools[", "", json_body, n_kept=1),)
    ),
    r"Action:\n```json": TagFormat(  # Command R+
        "action", calls=(CallMarks("Action:\n```json", "```", json_body, is_within=in_json),)
    ),
    "<tool_calls>[": _TOOL_CALLS,  # Apriel, which names <tool_call> too
    "<role>ASSISTANT</role>": replace(_TOOL_CALL, calls_end=True),  # Ling 3
    "<parameter=example_parameter": replace(  # Qwen3-Coder and 3.5, Nemotron 3: some leave <tool_call> out
        _TOOL_CALL,
        calls_end=True,
        calls=(
            *_TOOL_CALL.calls,
            CallMarks(
                "<function=",
                "</tool_call>",
                function_body,
                n_kept=len("<function="),
                known=True,
                is_within=in_tagged,
                stream=_FUNCTION_BY_LINE.open,
            ),
        ),
    ),
    "<tool_call>": _TOOL_CALL,
    "<tool_calls>": _TOOL_CALLS,  # MiniMax M1
    "<function=": TagFormat(  # Functionary 3.1: its arguments are JSON
        "functionary",
        calls=(CallMarks("<function=", "</function>", divided_body(">"), is_within=in_json, stream=_divided(">")),),
    ),
    '<function name="': TagFormat(  # MiniCPM 5
        "minicpm", calls=(CallMarks("<function", "</function>", body_of(_PARAM.begin), stream=_PARAM.open),)
    ),
    '{"name": function name, "parameters"': TagFormat(
        "llama3",
        calls=(CallMarks("{", "", bare_json_body, n_kept=1, first=True, between=";"),),
        around=("<|python_tag|>",),
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
    return replace(found, reasoning=found.reasoning or reasoning)
