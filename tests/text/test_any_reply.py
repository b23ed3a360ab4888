"""Replies of any text and any calls, in any pieces: nothing is lost, and cuts make no difference."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.text.replies.literal_stream import LiteralStream
from tests.text.reply_formats import (
    ARGS,
    ATEM,
    DSML,
    FORMATS,
    INVOKE,
    JSON,
    TAGGED,
    TOOLS,
    XML,
    joined,
    read,
    taken_apart,
)
from tests.text.written_calls import ENDS, STREAMED, UNTYPED, WRITERS

OWN_ENDS = ("</arg_value>", "</parameter>")  # of values between these, without quotes: nothing tells them apart
NASTY = (
    st.lists(st.sampled_from([*"\"'\\{}[]()\n é😀｜;,:=<12", "<|", "null", "True", '\\"', "```", *ENDS]), max_size=6)
    .map("".join)
    .filter(lambda value: not any(end in value for end in OWN_ENDS))
)
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


@pytest.mark.parametrize("writer", STREAMED)
def test_arguments_come_while_they_are_written(writer):
    """Of a known function: what was written of a text is told but for its last characters, and the pieces are JSON."""
    given = {"city": "abcdefghij" * 3, "days": 2}
    reply = WRITERS[writer]([("weather", given), ("weather", given)])
    reader = FORMATS[writer.partition(" ")[0]].reader("", TOOLS)
    told = joined(reader.push(reply[: reply.index("abc") + 20]))
    assert [name for name, *_ in told[2]] == ["weather"] and told[2][0][1].startswith('{"city": "abcdefgh')
    parts = read(writer.partition(" ")[0], list(reply))
    assert [json.loads(arguments) for _, arguments, _ in joined(parts)[2]] == [given, given]
    assert sum(part.kind == "arguments" for part in parts) > 40


@pytest.mark.parametrize("format", FORMATS)
def test_no_mark_begins_another(format):
    marks = (
        set(FORMATS[format].marks) - {"{"} - set(getattr(FORMATS[format], "inside", ()))
    )  # which no reader looks for
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
    for _, arguments, _ in joined(whole)[2]:  # of a known function they come as they are written, and may break off
        stream = LiteralStream()
        stream.take(arguments, False)
        assert format == "harmony" or not stream.is_broken


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", ["mark", "nested", '"', "}", "<parameter=a>", "<arg_value>", " \n", "\\"])
def test_hostile_replies_take_time_in_proportion(format, text):
    begins = [mark for mark in FORMATS[format].marks if mark != "{"] or ["{"]
    text = {"mark": "".join(begins), "nested": begins[0] * 3}.get(text, text)
    reply = "".join(begins[:3]) + '{"a": "' + text * (60_000 // len(text)) + "".join(begins)
    pieces = [reply[i : i + 16] for i in range(0, len(reply), 16)]
    assert "".join(part.raw for part in read(format, pieces)) == reply
