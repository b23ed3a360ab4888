"""Replies taken apart: reasoning, answers and calls of each format, whole, in pieces, cut off and broken."""

import re

import pytest

from edgerun.text.replies import find_reply_format, known_tools
from edgerun.text.replies.tags import TagFormat
from tests.text.reply_formats import (
    ARGS,
    ATEM,
    DSML,
    FORMATS,
    HARMONY_CALL,
    INVOKE,
    JSON,
    KIMI,
    KOELN,
    TAGGED,
    TOOLS,
    TWICE,
    XML,
    read,
    taken_apart,
)
from tests.text.written_calls import M3


@pytest.mark.parametrize(
    ("format", "reply", "text", "reasoning", "calls"),
    [
        ("tool_call", TAGGED.format(JSON, JSON), "Look.", "hm", TWICE),
        ("tool_call", TAGGED.format(XML, XML), "Look.", "hm", TWICE),
        ("tool_call", TAGGED.format("weather" + ARGS, "weather\n" + ARGS), "Look.", "hm", TWICE),
        ("tool_call", f"<tool_call>[{JSON}, {JSON}]</tool_call> ok", "ok", "", TWICE),
        ("tool_call", '<tool_call>{"name": "f", "parameters": "{\\"a\\": 1}"}</tool_call>', "", "", [("f", {"a": 1})]),
        ("tool_call", "<tool_call>now</tool_call>", "", "", [("now", {})]),
        ("tool_call", f"Look.\n{XML}\n</tool_call>\n<tool_call>\n{XML}\n</tool_call>", "Look.", "", TWICE),
        ("tool_call", "<function=now>\n</function>\n", "", "", [("now", {})]),
        ("tool_call", f"<think>\nhm <tool_call>\n<tool_call>\n{XML}\n</tool_call>", "", "hm <tool_call>", [KOELN]),
        ("tool_call", f"<think>hm<tool_call>{XML}</tool_call>so</think>Hi.", "soHi.", "hm", [KOELN]),
        ("tool_call", "<think>a <tool_call>f</think>Hi.<function=f>", "Hi.<function=f>", "a <tool_call>f", []),
        ("kimi", f"<think>hm{KIMI}", "", "hm", [KOELN]),
        ("dsml", f"<think>hm\n\n{DSML}", "", "hm", [KOELN]),
        ("kimi3", "<|open|>think<|sep|>hm<|open|>response<|sep|>Hi.<|close|>response<|sep|>", "Hi.", "hm", []),
        ("gemma4", "<|channel>thought\nhm<channel|>Hi.<channel|>", "Hi.", "hm", []),
        ("command", "<|START_RESPONSE|>Hi.<|END_RESPONSE|>", "Hi.", "", []),
        ("command", "<|START_TEXT|>Hi.<|END_TEXT|>", "Hi.", "", []),
        (
            "harmony",
            "<|channel|>commentary to=assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final<|message|>Hi.",
            "Hi.",
            "hm",
            [],
        ),
        (
            "minicpm",
            '<function name="weather"><param name="city"><![CDATA[a</param>]]></param>'
            '<param name="days">2</param></function>',
            "",
            "",
            [("weather", {"city": "a</param>", "days": 2})],
        ),
        ("seed", "<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>", "", "", [("now", {})]),
        ("minimax", f"<think>hm</think><minimax:tool_call>\n{INVOKE}\n{INVOKE}\n</minimax:tool_call>", "", "hm", TWICE),
        ("dsml", f"Look.\n\n{DSML}", "Look.", "", [KOELN]),
        (
            "harmony",
            f'<|channel|>analysis<|message|>hm<|end|><|start|>assistant{HARMONY_CALL}{{"city": "Köln", "days": 2}}',
            "",
            "hm",
            [KOELN],
        ),
        (
            "harmony",
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Köln", "days": 2}<|call|>',
            "",
            "",
            [KOELN],
        ),
        (
            "harmony",
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>c<|end|><|start|>assistant<|channel|>final<|message|>d",
            "c\n\nd",
            "a\n\nb",
            [],
        ),
        (
            "muse",
            f" to=self<|message|>hm<|eom|><|start|>assistant to=weather<|message|>{ATEM}<|eom|>"
            "<|start|>assistant to=user<|message|>Done.<|eot|>",
            "Done.",
            "hm",
            [KOELN],
        ),
        ("lfm2", "<|tool_call_start|>[weather(city='Köln', days=2)]<|tool_call_end|>Done.", "Done.", "", [KOELN]),
        ("lfm2", f"<|tool_call_start|>[{JSON}]<|tool_call_end|>", "", "", [KOELN]),
        (
            "lfm2",
            "<|tool_call_start|>[f(a=[1, {'b': None}], c=(True,), d=-1.5), now()]<|tool_call_end|>",
            "",
            "",
            [("f", {"a": [1, {"b": None}], "c": [True], "d": -1.5}), ("now", {})],
        ),
        (
            "gemma4",
            '<|channel>thought\nhm<channel|>Look.<|tool_call>call:weather{city:<|"|>Köln<|"|>,days:2}<tool_call|>',
            "Look.",
            "hm",
            [KOELN],
        ),
        (
            "gemma4",
            '<|tool_call>call:f{a:[1,<|"|>"x, y}"<|"|>],b:{c:true,d:null}}<tool_call|><|channel>thought\nb<channel|>c',
            "c",
            "b",
            [("f", {"a": [1, '"x, y}"'], "b": {"c": True, "d": None}})],
        ),
        ("mistral", '[THINK]hm[/THINK]a[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}', "a", "hm", [KOELN]),
        ("mistral", f"[TOOL_CALLS] [{JSON}]", "", "", [KOELN]),
        (
            "mistral",
            '[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}[TOOL_CALLS]now{"a": "}"}',
            "",
            "",
            [("now", {}), ("now", {"a": "}"})],
        ),
        (
            "deepseek",
            "ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
            '{"city": "Köln", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "ok",
            "",
            [KOELN],
        ),
        (
            "deepseek",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            '{"city": "Köln", "days": 2}\n```<｜tool▁call▁end｜>',
            "",
            "",
            [KOELN],
        ),
        (
            "kimi",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            '{"city": "Köln", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
            "",
            "",
            [KOELN],
        ),
        (
            "command",
            '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "now", "parameters": {}}]<|END_ACTION|>',
            "",
            "",
            [("now", {})],
        ),
        (
            "solar",
            "<|think|>hm<|end|><|begin|>assistant<|content|>Look.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>"
            'c1<|tool_call:name|>weather<|tool_call:args|>{"city": "Köln", "days": 2}<|tool_call:end|><|calls|>',
            "Look.",
            "hm",
            [KOELN],
        ),
        (
            "kimi3",
            "<|open|>think<|sep|>hm<|close|>think<|sep|><|open|>response<|sep|>Look.<|close|>response<|sep|><|open|>tools"
            '<|sep|><|open|>call tool="now" index="1"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|end_of_msg|>',
            "Look.",
            "hm",
            [("now", {})],
        ),
        (
            "minimax3",
            f'<mm:think>hm</mm:think>Look.{M3}<tool_call>\n{M3}<invoke name="weather">{M3}<city>Köln{M3}</city>'
            f'{M3}<days>2{M3}</days>{M3}</invoke>\n{M3}<invoke name="now">{M3}</invoke>\n{M3}</tool_call>',
            "Look.",
            "hm",
            [KOELN, ("now", {})],
        ),
        (
            "minimax3",
            f'</mm:think>{M3}<tool_call>{M3}<invoke name="f">{M3}<a>{M3}<item>x{M3}</item>{M3}<item>2{M3}</item>'
            f"{M3}</a>{M3}<b>{M3}<b>-1.5{M3}</b>{M3}<c>{M3}<item>{M3}<b>true{M3}</b>{M3}</item>{M3}</c>{M3}</b>{M3}</invoke>{M3}"
            "</tool_call>",
            "",
            "",
            [("f", {"a": ["x", 2], "b": {"b": -1.5, "c": [{"b": True}]}})],
        ),
        (
            "gigachat3",
            f"Look.<|message_sep|>\n\nfunction call<|role_sep|>\n{JSON}<|message_sep|>\n\n",
            "Look.",
            "",
            [KOELN],
        ),
        ("gigachat3", "A function call.<|message_sep|>\n\n", "A function call.", "", []),
        (
            "recipient",
            '>>>all\nLook: >>> 1\n>>>weather\n{"city": "Köln", "days": 2}>>>now\n{}',
            "Look: >>> 1",
            "",
            [KOELN, ("now", {})],
        ),
        ("llama3", '<|python_tag|>{"name": "now", "parameters": {}}', "", "", [("now", {})]),
        ("llama3", '{"name": "now"}; and {"name": "now"}', '; and {"name": "now"}', "", [("now", {})]),
        ("llama3", '{"name": "now"} ; {"a": 1}', '; {"a": 1}', "", [("now", {})]),
        ("llama3", '{"name": "now"};\n', "", "", [("now", {})]),
        ("llama3", '{"name": "Anna"}', '{"name": "Anna"}', "", []),
        ("llama3", 'Say {"name": "now", "parameters": {}}', 'Say {"name": "now", "parameters": {}}', "", []),
        ("llama3", '{"a": 1} is JSON', '{"a": 1} is JSON', "", []),
    ],
)
def test_each_format(format, reply, text, reasoning, calls):
    assert taken_apart(format, reply) == (text, reasoning, calls)
    for part in read(format, [reply]):
        assert part.kind in ("text", "reasoning", "call", "arguments", "mark")


def test_ids_that_models_give():
    assert read("kimi", ["<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"])[
        0
    ].call_id == ("functions.now:3")
    assert read("mistral", ["[TOOL_CALLS]now[CALL_ID]a1b2[ARGS]{}"])[0].call_id == "a1b2"


@pytest.mark.parametrize(
    ("format", "prompt", "reply", "text", "reasoning"),
    [
        ("tool_call", "<|im_start|>assistant\n<think>\n", "hm\n</think>\n\nHi.", "Hi.", "hm"),
        ("tool_call", "assistant\n<think>\n\n</think>\n\n", "Hi.", "Hi.", ""),
        ("tool_call", "assistant\n", "<think>\n\n</think>\n\nHi.\n", "Hi.\n", ""),
        ("tool_call", "assistant\n", "\n <think>hm</think>Hi.", "Hi.", "hm"),
        ("tool_call", "", "A <think> tag is </think> no reasoning.", "A <think> tag is </think> no reasoning.", ""),
        ("tool_call", "", "<think>a</think>b<think>c</think>", "b<think>c</think>", "a"),
        ("tool_call", "<think>", "never ends ", "", "never ends"),
        ("gemma4", "<|turn>model\n<|channel>thought\n<channel|>", "Hi.", "Hi.", ""),
        ("gemma4", "<|turn>model\n", "<|channel>thought\n<channel|>Hi.", "Hi.", ""),
        ("mistral", "[/INST]", "  Hi.  \n", "  Hi.  \n", ""),
        ("harmony", "<|start|>assistant", "Hi.", "Hi.", ""),
        ("harmony", "<|start|>assistant", "<|channel|>fin", "", ""),
        ("harmony", "<|start|>assistant<|channel|>final<|message|>", "Hi.<|return|>", "Hi.", ""),
        ("harmony", "<|start|>assistant<|channel|>analysis<|message|>", "hm<|end|>", "", "hm"),
        ("harmony", "x", "<|channel|>" + "y" * 300 + "<|message|>", "<|channel|>" + "y" * 300 + "<|message|>", ""),
        ("minimax3", "]~b]ai\n<mm:think>", "hm</mm:think>Hi.", "Hi.", "hm"),
        ("minimax3", "]~b]ai\n</mm:think>", "Hi.", "Hi.", ""),
        ("recipient", "<|end_header_id|>\n\n>>>", "all\nHi. >>> 1", "Hi. >>> 1", ""),
        ("recipient", "<|end_header_id|>\n\n>>>", "Hi.", "Hi.", ""),
        ("muse", "<|start|>assistant", " to=user<|message|>Hi.<|eot|>", "Hi.", ""),
        ("harmony", "x", "<|channel|>commentary to=python code<|message|>1<|end|>", "", None),
        ("muse", "<|start|>assistant", " tomorrow", " tomorrow", ""),
    ],
)
def test_where_reasoning_begins_and_ends(format, prompt, reply, text, reasoning):
    if reasoning is None:  # of a call, where nothing can be called
        assert taken_apart(format, reply, prompt, {}) == (text, "1", [])
        return
    for tools in (TOOLS, {}):
        if "y" in reply and format == "harmony":
            text = taken_apart(format, reply, prompt, tools)[0]
            assert text.startswith("<|channel|>yyy")
            continue
        assert taken_apart(format, reply, prompt, tools) == (text, reasoning, [])


BROKEN = [
    ("tool_call", "<tool_call>not a call</tool_call>"),
    ("tool_call", '<tool_call>{"name": "f"'),
    ("tool_call", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("tool_call", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("tool_call", "<tool_call>" + "[" * 5000 + "</tool_call>"),
    ("tool_call", '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3000 + "}</tool_call>"),
    ("tool_call", "<tool_call><function=f><parameter=a>1</function></tool_call>"),
    ("tool_call", "<tool_call>"),
    ("lfm2", "<|tool_call_start|>[f(1)]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[__import__('os').system(a='x')]<|tool_call_end|>"),
    ("lfm2", "<|tool_call_start|>[f(a=" + "[" * 5000 + ")]<|tool_call_end|>"),
    ("gemma4", "<|tool_call>call:f{a:unquoted words}<tool_call|>"),
    ("gemma4", "<|tool_call>f{}<tool_call|>"),
    ("mistral", "[TOOL_CALLS]no call at all"),
    ("mistral", "[TOOL_CALLS]" + "a" * 300 + "[ARGS]{}"),
    ("mistral", "[TOOL_CALLS]f[ARGS]{]"),
    ("deepseek", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>no json<｜tool▁call▁end｜>"),
    ("minimax", '<minimax:tool_call><invoke name="f">text</invoke></minimax:tool_call>'),
    ("llama3", '{"name": "now", '),
    ("minimax3", f'{M3}<tool_call>{M3}<invoke name="f">text{M3}</invoke>{M3}</tool_call>'),
    ("gigachat3", "function call<|role_sep|>\nnow"),
    ("recipient", ">>>now\nand then"),
]


@pytest.mark.parametrize(("format", "reply"), BROKEN)
def test_what_is_no_call_stays_text(format, reply):
    for tail in ("", " and more\n"):
        assert taken_apart(format, reply + tail) == (reply + tail, "", [])


def test_without_tools_nothing_is_a_call():
    reply = f"<tool_call>{JSON}</tool_call>"
    assert taken_apart("tool_call", reply, tools={}) == (reply, "", [])


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "weather", "arguments": {"city": "</tool_call> x"}}', {"city": "</tool_call> x"}),
        ("<function=weather><parameter=city></tool_call></parameter></function>", {"city": "</tool_call>"}),
        ("<function=weather>\n<parameter=city>\n\n a\n\n</parameter>", {"city": "\n a\n"}),
        ("<function=weather><parameter=city>12</parameter></function>", {"city": "12"}),
        ("<function=weather><parameter=days>True</parameter></function>", {"days": True}),
        ("<function=weather><parameter=days>many</parameter></function>", {"days": "many"}),
        ('<function=weather><parameter=x>{"a": [1]}</parameter></function>', {"x": {"a": [1]}}),
        ("<function=weather><parameter=x>1e999</parameter></function>", {"x": "1e999"}),
        ("weather<arg_key>city</arg_key><arg_value>12</arg_value>", {"city": "12"}),
        ('{"name": "weather", "arguments": {"city": "\\ud83d\\ude00 \\ud83d"}}', {"city": "😀 \ufffd"}),
    ],
)
def test_values(body, arguments):
    assert taken_apart("tool_call", f"<tool_call>\n{body}\n</tool_call>") == ("", "", [("weather", arguments)])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"'a\'b\n\x41\u00e9\\'", "a'b\nAé\\"),
        (r'"\ud83d\ude00\ud83d\q\u12"', "😀\ufffdq\\u12"),
        ("(1, 2,)", [1, 2]),
        ("{'a': 1, b: .5,}", {"a": 1, "b": 0.5}),
        ("-3", -3),
        ("1" * 5000, None),
    ],
)
def test_pythons_values(text, value):
    reply = f"<|tool_call_start|>[f(a={text})]<|tool_call_end|>"
    if value is None:  # a number that JSON cannot hold
        assert taken_apart("lfm2", reply) == (reply, "", [])
    else:
        assert taken_apart("lfm2", reply) == ("", "", [("f", {"a": value})])


@pytest.mark.parametrize(
    ("template", "tokens", "format", "reasoning"),
    [
        ("<|im_start|>{{ '<think>' }}{{ '</think>' }} <tool_call> <function=", (), "tool_call", "<think>"),
        ("<tool_call>", (), "tool_call", None),
        ("</think>", (), "reasoning", "<think>"),
        ("<|start|><|channel|><|message|>", (), "harmony", None),
        ("<atem:function_calls> to=self <|channel|><|message|>", (), "muse", None),
        ("<|channel>thought <channel|> <|tool_call>", (), "gemma4", "<|channel>thought"),
        ("[TOOL_CALLS] [THINK] [/THINK]", (), "mistral", "[THINK]"),
        ("<|im_start|>", ("<|tool_call_start|>",), "lfm2", None),
        ("<|im_start|>", (), None, None),
        ("'<|tools_prefix|>' '<|inner_prefix|>'", (), "apertus", "<|inner_prefix|>"),
        ("<tool_calls>[ ]</tool_calls> [BEGIN FINAL RESPONSE]", (), "tool_calls", "Here are my reasoning steps:"),
        ("{%- set HYTK = ':opensource' %}", (), "hy3", "<think:opensource>"),
        ("<|tool_call:begin|> <|think|>", (), "solar", "<|think|>"),
        ("'<|open|>' + tag <|close|> <|end_of_msg|>", (), "kimi3", "<|open|>think<|sep|>"),
        ("'<function=' + name + '>'", (), "functionary", None),
        ("set t = ']<]minimax[>[' '<tool_call>' '</mm:think>'", (), "minimax3", "<mm:think>"),
        ("'<|role_sep|>' 'function call'", (), "gigachat3", None),
        ("'<|role_sep|>' '<|function_call|>'", (), "gigachat", None),
        ("Respond in this format:\n>>>${recipient}", (), "recipient", None),
        ("<tool_call></tool_call> <tool_calls>[{", (), "tool_calls", None),
        ("<function=example_function_name>{...}</function>", (), "functionary", None),
        ("formatted as functools[{...}, ...]", (), "functools", None),
        (r"'\nAction:\n```json\n[\n'", (), "action", None),
        ('<function name="x"><param name="y"> </think>', (), "minicpm", "<think>"),
    ],
)
def test_which_format_a_model_has(template, tokens, format, reasoning):
    found = find_reply_format(template, tokens.__contains__)
    assert (found and found.name) == format
    if isinstance(found, TagFormat):
        assert (found.reasoning and found.reasoning.begin) == reasoning


def test_a_recipient_stands_in_the_prompt_in_part():
    reply = 'weather\n{"city": "Köln >>>all\\n", "days": 2}>>>now\n{}'
    given = {"city": "Köln >>>all\n", "days": 2}
    assert taken_apart("recipient", reply, "\n\n>>>") == ("", "", [("weather", given), ("now", {})])
    for n in range(len(reply) + 1):
        assert "".join(part.raw for part in read("recipient", [reply[:n], reply[n:]], "\n\n>>>")) == reply


def test_schemas_of_elements():
    properties = {
        "no": {"type": "array", "items": {"type": "integer"}},
        "may": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "many": {"type": ["string", "integer"]},
        "one": {"oneOf": [{"type": "object", "properties": {"max": {"type": "string"}}}, {"type": "number"}]},
    }
    tools = known_tools([{"name": "f", "parameters": {"properties": properties}}])
    reply = (
        f'{M3}<tool_call>{M3}<invoke name="f">{M3}<no>{M3}</no>{M3}<may>12{M3}</may>{M3}<one>'
        f"{M3}<max>7{M3}</max>{M3}</one>{M3}</invoke>{M3}</tool_call>"
    )
    assert taken_apart("minimax3", reply, tools=tools)[2] == [("f", {"no": [], "may": "12", "one": {"max": "7"}})]
    for key, text, value in (
        ("may", "12", "12"),
        ("may", "null", None),
        ("many", "12", 12),
        ("many", "12 or so", "12 or so"),
    ):
        as_qwen = f"<tool_call><function=f><parameter={key}>{text}</parameter></function></tool_call>"
        assert taken_apart("tool_call", as_qwen, tools=tools)[2] == [("f", {key: value})]


def test_marks_are_texts_that_tokens_may_have():
    for name, format in FORMATS.items():
        for mark in format.marks:
            assert mark and (not re.search(r"\s", mark) or name in ("gigachat3", "recipient", "action"))
