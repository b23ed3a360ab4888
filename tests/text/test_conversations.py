"""Templates that want a conversation in other ways than it is usually written; written here in their constructs."""

import json

import pytest

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate
from edgerun.text.template_process import TemplateProcess

ARGUMENTS = {"city": "Zürich", "days": [1, 2]}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
CHAT = [
    {"role": "system", "content": "Help."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "20"},
]
EACH_CALL = "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}BODY{% endfor %}{% endfor %}"
AS_JSON = json.dumps(ARGUMENTS, ensure_ascii=False)


@pytest.fixture(scope="module")
def process():
    shared = TemplateProcess()
    yield shared
    shared.close()


@pytest.fixture
def render(process):
    def render(source, messages=CHAT, **options):
        return ChatTemplate(source, process=process).render(messages, **options)

    return render


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", AS_JSON),  # of a text it would be a quoted one
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}", "city=Zürich;days=[1, 2];"),
        ("{% for k in c.function.arguments %}{{ k }} {% endfor %}", "city days "),
        ("{{ 'args: ' + c.function.arguments }}", "args: " + AS_JSON),  # fails with a mapping
        ("{{ c.function.arguments }}", AS_JSON),  # would be Python's way to write it
        ("{{ c.function.arguments | from_json | length }}", "2"),
        ("{% if c.function.arguments is string %}{{ 1 / 0 }}{% endif %}{{ c.id }}", "call00001"),
        ("{% if c.function.arguments is mapping %}{{ raise_exception('no') }}{% endif %}text", "text"),
    ],
)
def test_arguments_of_calls(render, body, expected):
    source = EACH_CALL.replace("BODY", body)
    assert render(source) == expected
    given = [{**CALL, "function": {"name": "weather", "arguments": ARGUMENTS}}]
    assert render(source, [*CHAT[:2], {**CHAT[2], "tool_calls": given}, CHAT[3]]) == expected


def test_what_is_no_json_object_stays_as_it_is(render):
    for arguments in ("not json", "[1]", "7", "{" * 5000, None):
        call = {**CALL, "function": {"name": "f", "arguments": arguments}}
        messages = [CHAT[1], {"role": "assistant", "tool_calls": [call, "odd", {"function": 5}]}]
        assert render("{{ messages[1].tool_calls[0].function.arguments }}", messages) == str(arguments)
    assert render("{{ messages[0].tool_calls }}", [{"role": "assistant", "tool_calls": "odd"}]) == "odd"


def test_text_that_looks_like_pythons_mapping_may_stand_in_a_message(render):
    messages = [*CHAT, {"role": "user", "content": str(ARGUMENTS)}]
    source = EACH_CALL.replace("BODY", "{{ c.function.arguments | tojson }}") + "{{ messages[-1].content }}"
    assert render(source, messages) == AS_JSON + str(ARGUMENTS)


def test_a_system_that_is_refused_speaks_through_the_user(render):
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    )
    assert render(source, CHAT[:2]) == "[user: Help.\n\nWeather?]"
    assert render(source, [CHAT[0], {"role": "developer", "content": "Now."}]).startswith("[user: Help.")
    assert render(source, [*CHAT[:1], {"role": "assistant", "content": "a"}]) == "[user: Help.][assistant: a]"
    both = source + EACH_CALL.replace("BODY", "{{ '' + c.function.arguments }}")
    assert render(both).endswith(AS_JSON)
    refuses = "{{ raise_exception('never') }}"
    with pytest.raises(TemplateError, match="refuses: never"):
        render(refuses)


def test_without_tools_there_is_no_such_variable(render):
    assert render("{{ tools is defined }}", tools=[]) == "False"
    assert render("{% for t in tools %}x{% endfor %}none") == "none"
    assert render("{{ tools is defined }}", tools=[{"name": "f"}]) == "True"
    assert render("{% if tools is not none %}{{ 1 / 0 }}{% endif %}none") == "none"  # one that asks for None


def test_lists_and_mappings_may_be_changed(render):
    source = (
        "{% set calls = [] %}{% for m in messages %}{% do calls.append(m.role) %}{% endfor %}"
        "{% set _ = messages[0].update({'content': 'changed'}) %}{{ calls | join(',') }} {{ messages[0].content }}"
    ).replace("{% do ", "{% set _ = ")
    assert render(source) == "system,user,assistant,tool changed"
    assert CHAT[0]["content"] == "Help."
    assert render(source) == "system,user,assistant,tool changed"  # nothing is left from one time to the next


def test_json_of_what_a_filter_gives(render):
    assert render("{{ messages | map(attribute='role') | tojson }}", CHAT[:2]) == '["system", "user"]'
    with pytest.raises(TemplateError, match="Undefined is not JSON"):
        render("{{ nothing | tojson }}")


def test_reasoning_by_every_name(render):
    assert (
        render("{{ messages[2].thinking }}{{ messages[2].reasoning }}{{ messages[2].reasoning_content }}") == "hmhmhm"
    )
    assert render("{{ messages[2].thinking }}", [*CHAT[:2], {**CHAT[2], "thinking": "other"}]) == "other"
    either = (  # as gpt-oss has it
        "{% set m = messages[2] %}{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
        "{{ m.content }}{{ m.thinking }}"
    )
    assert render(either, [*CHAT[:2], {**CHAT[2], "content": "I look."}]) == "hm"


def test_all_that_messages_and_variables_hold_reaches_the_template(render):
    source = (
        "{{ messages[2].reasoning_content }} {{ messages[3].tool_call_id }} {{ messages[3].name }} {{ documents[0] }} "
        "{{ enable_thinking }} {{ reasoning_effort }} {{ model_identity }} {{ builtin_tools }} {{ thinking_budget }} "
        "{{ preserve_thinking }}"
    )
    variables = {
        "documents": ["doc"],
        "enable_thinking": False,
        "reasoning_effort": "low",
        "model_identity": "You are.",
        "builtin_tools": ["browser"],
        "thinking_budget": 7,
        "preserve_thinking": True,
    }
    assert render(source, variables=variables) == ("hm call00001 weather doc False low You are. ['browser'] 7 True")
