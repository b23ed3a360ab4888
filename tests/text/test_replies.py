"""Replies taken apart: reasoning, answers and calls of each format, whole, in pieces, cut off and broken."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.text.replies import find_reply_format, known_tools
from edgerun.text.replies.formats import _CALLS, _MESSAGES, _REASONING
from edgerun.text.replies.tags import TagFormat
from tests.text.written_calls import ENDS, UNTYPED, WRITERS

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
THINK, GEMMA, MISTRAL = _REASONING[4], _REASONING[0], _REASONING[1]


def with_reasoning(mark, reasoning):
    calls = _CALLS[mark]
    return TagFormat(calls.name, reasoning, calls.calls, calls.around, calls.inside)


FORMATS = {
    **_MESSAGES,
    **{each.name: with_reasoning(mark, THINK) for mark, each in _CALLS.items()},
    "gemma4": with_reasoning("<|tool_call>", GEMMA),
    "mistral": with_reasoning("[TOOL_CALLS]", MISTRAL),
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
TAGGED = "<think>\nhm\n</think>\n\nLook.\n\n<tool_call>\n{}\n</tool_call>\n<tool_call>\n{}\n</tool_call>"
TWICE = [KOELN, KOELN]


@pytest.mark.parametrize(
    ("format", "reply", "text", "reasoning", "calls"),
    [
        ("tool_call", TAGGED.format(JSON, JSON), "Look.", "hm", TWICE),
        ("tool_call", TAGGED.format(XML, XML), "Look.", "hm", TWICE),
        ("tool_call", TAGGED.format("weather" + ARGS, "weather\n" + ARGS), "Look.", "hm", TWICE),
        ("tool_call", f"<tool_call>[{JSON}, {JSON}]</tool_call> ok", "ok", "", TWICE),
        ("tool_call", '<tool_call>{"name": "f", "parameters": "{\\"a\\": 1}"}</tool_call>', "", "", [("f", {"a": 1})]),
        ("tool_call", "<tool_call>now</tool_call>", "", "", [("now", {})]),
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


NASTY = st.lists(
    st.sampled_from([*"\"'\\{}[]()\n é😀｜;,:=<12", "<|", "null", "True", '\\"', "```", *ENDS]), max_size=6
).map("".join)
VALUES = st.recursive(
    NASTY | st.integers(-9, 10**12) | st.booleans() | st.none() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b_c"]), inner, max_size=2),
    max_leaves=4,
)
KNOWN = st.tuples(st.just("weather"), st.fixed_dictionaries({"city": NASTY, "days": st.integers(0, 9)}))
FREE = st.tuples(st.just("now"), st.dictionaries(st.sampled_from(["a", "b_c", "x1"]), VALUES, max_size=2))


@pytest.mark.parametrize("writer", WRITERS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_calls_are_read_as_they_were_written(writer, data):
    format = writer.partition(" ")[0]
    calls = data.draw(st.lists(KNOWN if writer in UNTYPED else KNOWN | FREE, min_size=1, max_size=3))
    before = data.draw(st.sampled_from(["", "Look {", "Ünd"])) if format not in ("llama3", "harmony", "muse") else ""
    reply = before + WRITERS[writer](calls)
    assert taken_apart(format, reply) == (before, "", [(name, given) for name, given in calls])
    whole = joined(read(format, [reply]))
    for n in range(len(reply) + 1) if len(reply) < 120 else [len(reply) // 2]:
        assert joined(read(format, [reply[:n], reply[n:]])) == whole
    n = data.draw(st.integers(0, len(reply)))  # what breaks off loses nothing
    assert "".join(part.raw for part in read(format, [reply[:n]])) == reply[:n]


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
        ("muse", "<|start|>assistant", " to=user<|message|>Hi.<|eot|>", "Hi.", ""),
        ("muse", "<|start|>assistant", " tomorrow", " tomorrow", ""),
    ],
)
def test_where_reasoning_begins_and_ends(format, prompt, reply, text, reasoning):
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


@pytest.mark.parametrize("format", FORMATS)
def test_no_mark_begins_another(format):
    marks = set(FORMATS[format].marks) - {"{"}
    assert not [(a, b) for a in marks for b in marks if a != b and b.startswith(a) and a != "<|channel>"]


PIECES = sorted(
    {
        *(mark for format in FORMATS.values() for mark in format.marks),
        *(
            "thought\n",
            "analysis",
            "final",
            "commentary",
            " to=functions.f",
            " to=self",
            " to=user",
            "json",
            "assistant",
        ),
        *(
            JSON,
            XML,
            ARGS,
            INVOKE,
            ATEM,
            DSML,
            "weather",
            "call:f{a:1}",
            "[f(a='x')]",
            "f",
            "functions.f:0",
            "function",
        ),
        *(
            '{"a": "',
            '"}',
            "{",
            "}",
            "[",
            "]",
            '"',
            "'",
            "\\",
            "\n",
            "\n\n",
            " ",
            "a",
            "é",
            "<",
            "<|",
            ":",
            ",",
            "(",
            ")",
        ),
        *(
            "<function=f>",
            "<parameter=a>",
            "</parameter>",
            "</function>",
            '<invoke name="f">',
            "</invoke>",
            "```json\n",
        ),
    }
)
REPLIES = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.builds(
    lambda reply, n: reply[:n], st.sampled_from([TAGGED.format(JSON, XML), ATEM, DSML]), st.integers(0, 200)
)


@pytest.mark.parametrize("format", FORMATS)
@given(reply=REPLIES, data=st.data())
@settings(max_examples=60)
def test_any_text_in_any_cuts_gives_what_it_gives_whole_and_nothing_is_lost(format, reply, data):
    prompt = data.draw(st.sampled_from(["", "<think>\n", "<|start|>assistant", "<|start|>assistant<|message|>"]))
    tools = data.draw(st.sampled_from([TOOLS, {}]))
    whole = read(format, [reply], prompt, tools)
    assert "".join(part.raw for part in whole) == reply
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    for pieces in (
        [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)],
        list(reply),
    ):
        parts = read(format, pieces, prompt, tools)
        assert joined(parts) == joined(whole)
        assert "".join(part.raw for part in parts) == reply
    for _, arguments, _ in joined(whole)[2]:
        assert format == "harmony" or isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", ["mark", "nested", '"', "}", "<parameter=a>", "<arg_value>", " \n", "\\"])
def test_hostile_replies_take_time_in_proportion(format, text):
    begins = [mark for mark in FORMATS[format].marks if mark != "{"] or ["{"]
    text = {"mark": "".join(begins), "nested": begins[0] * 3}.get(text, text)
    reply = "".join(begins[:3]) + '{"a": "' + text * (60_000 // len(text)) + "".join(begins)
    pieces = [reply[i : i + 16] for i in range(0, len(reply), 16)]
    assert "".join(part.raw for part in read(format, pieces)) == reply


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
    ],
)
def test_which_format_a_model_has(template, tokens, format, reasoning):
    found = find_reply_format(template, tokens.__contains__)
    assert (found and found.name) == format
    if isinstance(found, TagFormat):
        assert (found.reasoning and found.reasoning.begin) == reasoning


def test_marks_are_texts_that_tokens_may_have():
    for format in FORMATS.values():
        assert all(isinstance(mark, str) and mark and not re.search(r"\s", mark) for mark in format.marks)
