"""The formats of replies, how tests have them read, and calls as some of them write them."""

import json
from dataclasses import replace

from edgerun.text.replies import known_tools
from edgerun.text.replies.formats import _CALLS, _MESSAGES, _REASONING
from edgerun.text.replies.tags import Reasoning, TagFormat

TOOLS = known_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                },
            },
        },
        {"name": "now"},
        "no tool",
        {"function": {"name": 5}},
    ]
)
THINK, GEMMA, MISTRAL = _REASONING[-1], _REASONING[0], _REASONING[1]


def with_reasoning(mark, reasoning):
    calls = _CALLS[mark]
    return replace(calls, reasoning=calls.reasoning or reasoning)


FORMATS = {
    **_MESSAGES,
    **{each.name: with_reasoning(mark, THINK) for mark, each in _CALLS.items()},
    "tool_call": with_reasoning("<parameter=example_parameter", THINK),
    "gemma4": with_reasoning("<|tool_call>", GEMMA),
    "mistral": with_reasoning("[TOOL_CALLS]", MISTRAL),
    "minimax3": with_reasoning("]<]minimax[>[", Reasoning("<mm:think>", "</mm:think>")),
    "reasoning": TagFormat("reasoning", THINK),
}


def read(format, pieces, prompt="", tools=TOOLS):
    reader = FORMATS[format].reader(prompt, tools)
    parts = [part for piece in pieces for part in reader.push(piece)]
    return parts + reader.finish()


def joined(parts):
    """(text, reasoning, calls) of a reply: what does not depend on how it came."""
    text = "".join(part.text for part in parts if part.kind == "text")
    reasoning = "".join(part.text for part in parts if part.kind == "reasoning")
    calls = []
    for part in parts:
        if part.kind == "call":
            calls.append([part.text, "", part.call_id])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
    return text, reasoning, calls


def taken_apart(format, reply, prompt="", tools=TOOLS):
    text, reasoning, calls = joined(read(format, [reply], prompt, tools))
    return text, reasoning, [(name, json.loads(arguments)) for name, arguments, _ in calls]


KOELN = ("weather", {"city": "Köln", "days": 2})
HARMONY_CALL = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
ATEM = (
    '<atem:function_calls>\n<atem:invoke name="weather">\n<atem:parameter name="city">Köln</atem:parameter>\n'
    '<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
XML = "<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
ARGS = "<arg_key>city</arg_key><arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>"
JSON = '{"name": "weather", "arguments": {"city": "Köln", "days": 2}}'
INVOKE = '<invoke name="weather"><parameter name="city">Köln</parameter><parameter name="days">2</parameter></invoke>'
DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">Köln'
    '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Köln", "days": 2}<|tool_call_end|><|tool_calls_section_end|>'
)
TAGGED = "<think>\nhm\n</think>\n\nLook.\n\n<tool_call>\n{}\n</tool_call>\n<tool_call>\n{}\n</tool_call>"
TWICE = [KOELN, KOELN]
