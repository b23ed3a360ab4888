"""What templates would leave out without a word, or refuse, of conversations that users have; in their constructs."""

import json

import pytest

from edgerun.errors import TemplateError
from edgerun.options import thinking_variables
from edgerun.text import ChatTemplate
from edgerun.text.template_process import TemplateProcess

TURNS = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
USER = {"role": "user", "content": "Weather?"}
CALLS = [
    {"id": f"call{i}", "type": "function", "function": {"name": "weather", "arguments": json.dumps(given)}}
    for i, given in enumerate([{"city": "Ulm", "new": True}, {"city": "Köln"}])
]
BOTH = [
    USER,
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call1", "content": "rain"},
    {"role": "tool", "tool_call_id": "call0", "content": "sun"},
]


@pytest.fixture(scope="module")
def render():
    process = TemplateProcess()
    yield lambda source, messages, **more: ChatTemplate(source, process=process).render(messages, **more)
    process.close()


def test_results_stand_in_the_order_of_their_calls(render):
    assert render(TURNS + "{{ 'tool_calls' }}", BOTH) == (
        "[user: Weather?][assistant: ][tool: sun][tool: rain]tool_calls"
    )
    without_ids = [{**message, "tool_call_id": None} if message["role"] == "tool" else message for message in BOTH]
    assert "[tool: rain][tool: sun]" in render(TURNS + "{{ 'tool_calls' }}", without_ids)


@pytest.mark.parametrize("refuses", ["", "{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"])
def test_of_several_calls_each_is_written_where_a_template_takes_one(render, refuses):
    source = (
        "{% for m in messages %}"
        + refuses
        + "{% if m.tool_calls %}{{ m.thinking }}<{{ m.tool_calls[0].function.arguments.city }}>"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert render(source, BOTH) == "Weather?hm<Ulm>sun<Köln>rain"


def test_calls_are_text_where_the_model_wants_them_so(render):
    lfm = render("{{ 'List of tools: ' }}" + TURNS, BOTH)
    assert (
        '[assistant: <|tool_call_start|>[weather(city="Ulm", new=True), weather(city="Köln")]<|tool_call_end|>]' in lfm
    )
    granite = render("{{ '<|tool_call|>' }}" + TURNS, BOTH)
    assert '[assistant: <|tool_call|>[{"name": "weather", "arguments": {"city": "Ulm", "new": true}}, ' in granite


def test_reasoning_is_a_part_of_the_content_where_a_template_looks_there(render):
    source = (
        "{% for block in messages[1].content if messages[1].content is not string %}"
        "{% if block['type'] == 'thinking' %}[THINK]{{ block['thinking'] }}[/THINK]"
        "{% else %}{{ block['text'] }}{% endif %}{% endfor %}"
    )
    assert (
        render(source, [USER, {"role": "assistant", "content": "Hi.", "reasoning_content": "hm"}])
        == "[THINK]hm[/THINK]Hi."
    )
    assert render(source, BOTH) == "[THINK]hm[/THINK]"


def test_a_message_that_only_calls_has_no_content_for_deepseek(render):
    source = (
        "{% set m = messages[1] %}{{ m.tool_calls | length if m['content'] is none }}{{ '<｜tool▁calls▁begin｜>' }}"
    )
    assert render(source, BOTH) == "2<｜tool▁calls▁begin｜>"


FIRST = (
    "{{ messages[0].content }}{% for m in messages if m.role != 'system' %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
)
NEVER = "{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{{ m.content }}|{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TURNS, "[system: Be brief.][user: Weather?][assistant: Sun.][system: In English.][user: And?]"),
        (FIRST, "Be brief.[user: Weather?][assistant: Sun.][user: In English.\n\nAnd?]"),
        (NEVER, "Be brief.\n\nWeather?|Sun.|In English.\n\nAnd?|"),
    ],
)
def test_what_the_system_and_developers_say_is_never_left_out(render, source, expected):
    turns = [USER, {"role": "assistant", "content": "Sun."}]
    last = {"role": "user", "content": "And?"}
    for role in ("system", "developer"):
        late = {"role": role, "content": "In English."}
        assert render(source, [{"role": role, "content": "Be brief."}, *turns, late, last]) == expected
    knows = TURNS + "{# developer #}"
    assert render(knows, [{"role": "developer", "content": "Be brief."}]) == "[developer: Be brief.]"
    drops = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}{# developer #}"
    assert render(drops, [{"role": "developer", "content": "Be brief."}, USER]) == "Be brief."


def test_turns_that_a_template_refuses(render):
    alternate = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or not m.content %}"
        "{{ raise_exception('alternate') }}{% endif %}{{ m.content }}|{% endfor %}"
    )
    assert render(alternate, [USER, {"role": "user", "content": "Now?"}]) == "Weather?\n\nNow?|"
    assert render(alternate, [USER, {"role": "assistant", "content": ""}, USER]) == "Weather?| |Weather?|"
    with pytest.raises(TemplateError, match="needs a message: there is none"):
        render("{{ messages[0].content }}", [])


def test_tools_without_what_may_be_left_out(render):
    source = "{% for t in tools %}{{ t.function.description + t.function.parameters.properties | tojson }}{% endfor %}"
    assert render(source, [USER], tools=[{"type": "function", "function": {"name": "now"}}]) == "{}"
    city = {"function": {"name": "f", "description": "d", "parameters": {"properties": {"city": {"type": "string"}}}}}
    described = source.replace("properties |", "properties.city.description + 'x' |")
    assert render(described, [USER], tools=[city]) == 'd"x"'
    assert render("{{ functions + datetime[:2] }}", [USER]) == "20"  # Firefunction
    assert '"name": "f"' in render("{{ functions + datetime }}", [USER], tools=[city])


def test_deepseek_is_told_of_functions_that_its_template_does_not_know(render):
    tools = [{"type": "function", "function": {"name": "now", "description": "Tells the time."}}]
    source = TURNS + "{{ '<｜tool▁call▁begin｜>' }}"
    told = render(source, [{"role": "system", "content": "Be brief."}, USER], tools=tools)
    assert told.startswith(
        "[system: Be brief.\n\n## Tools\nYou have access to the following tools:\n\n### now\nDescription:"
    )
    assert "][user: Weather?]" in told
    assert "now" not in render(source, [USER])
    assert "now" not in render(TURNS, [USER], tools=tools)


@pytest.mark.parametrize("word", ["off", "none", "on", "low"])
def test_thinking_by_every_name(render, word):
    names = ("enable_thinking", "thinking", "thinking_mode", "thinking_budget is defined", "reasoning_effort")
    source = " ".join(f"{{{{ {name} }}}}" for name in names)
    expected = {
        "off": "False False disabled True ",
        "none": "False False disabled True none",
        "on": "True True enabled False ",
        "low": "True True enabled False low",
    }
    assert render(source, [USER], variables=thinking_variables(word)) == expected[word]
