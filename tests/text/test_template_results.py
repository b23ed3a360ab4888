"""Chat templates that mean well give what plain jinja2 gives as Hugging Face's `apply_chat_template` sets it up."""

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate, fallbacks
from edgerun.text.template_process import TemplateProcess

from . import test_templates

TEMPLATES = Path(__file__).with_name("templates")  # in the manner of well-known models
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für <b>Städte</b> & 'Dörfer'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "which"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "unit": {"type": ["string", "number"], "enum": ["C", "F"]},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1.5}},
}
CHATS = {
    "one": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Hello \U0001f600"}],
    "long": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"},
        {"role": "user", "content": "  \n{{ braces }} {% and more %} Bye  "},
    ],
    "tools": [
        {"role": "system", "content": "Help."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"t": 20}'},
        {"role": "assistant", "content": "20 degrees.", "reasoning_content": "easy"},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "odd": [{"role": "user", "content": ""}, {"role": "user", "content": "\r\n\t<s>\\n"}],
}

TRAINING = (
    "{% set x = 'a' %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 'b' %}"
    "{{ m.content }}{{ x }}{{ loop.index }}{% endgeneration %}{{ x }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)

EXPRESSIONS = (
    "{{ 'a' * 3 }}{{ 2 ** 10 }}{{ '%s-%03d' % ('x', 7) }}{{ '{:>4}'.format('y') }}{{ 'a,b'.split(',') | join('+') }}"
    "{{ 'x\\ny' | indent(2) }}{{ [1, 2] + [3] }}{{ 'ab' ~ 1 }}{{ range(3) | list }}{{ 'AbC'.lower() | title }}"
    "{{ none }}{{ 1.5 }}{{ messages | map(attribute='role') | list }}{{ {'a': 1}.items() | list }}{{ 7 // 2 }}"
    "{{ messages | selectattr('role', 'in', ['user']) | list | length }}{{ messages[::-1][0].content | upper }}"
    "{{ 'x' if false }}{{ undefined_name }}{{ messages | groupby('role') | map(attribute='grouper') | list }}"
    "{{ '<&>' | e }}{{ '<&>' | safe }}{{ ['b', 'a'] | sort | first }}{{ 3.7 | round | int }}{{ 'abc' | reverse }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ 'abcdef' | truncate(4) }}{{ 'a b c' | wordcount }}{{ 'a b' | wordwrap(1) }}"
    "{{ 'a%20b é' | urlencode }}{{ '<p>x</p>' | striptags }}{{ 'http://a.b' | urlize }}{{ 5 | filesizeformat }}"
    "{{ {'a': [1]} | pprint }}{{ {'class': 'x'} | xmlattr }}{{ [1, [2]] | tojson(indent=2) }}{{ (1, 2) | tojson }}"
    "{{ [3, 1] | max }}{{ [1, 2, 2] | unique | list }}{{ range(7) | batch(3, 'x') | list }}{{ lipsum is defined }}"
    "{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ dict(a=1) }}{{ '{0[0]}'.format([5]) }}{{ 'é'.encode() }}"
    "{% set ns = namespace(n=0) %}{% for m in messages if m.content %}{% set ns.n = ns.n + loop.index %}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% if loop.first %}{% continue %}{% endif %}"
    "{{ loop.cycle('x', 'y') }}{{ loop.changed(m.role) }}{{ loop.depth }}{% else %}none{% endfor %}{{ ns.n }}"
    "{% macro f(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, d=4) }}"
    "{% call(x) f(1) %}{{ x }}{% endcall %}{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}"
    "{% raw %}{{ x }}{% endraw %}{# no #}{% set block %} captured {% endset %}{{ block | trim }}"
    "{% if messages[0] is mapping and messages is sequence and 4 is divisibleby 2 and 'a' is lower %}yes{% endif %}"
)

FALLBACKS = ("CHATML", "LLAMA3", "GEMMA", "PHI3", "LLAMA2", "HARMONY", "GEMMA4", "GLM", "DEEPSEEK", "TRANSCRIPT")
SOURCES = {
    **{name: getattr(test_templates, name) for name in ("QWEN", "LLAMA3", "MISTRAL", "GEMMA", "PHI3")},
    **{f"fallback {name}": getattr(fallbacks, name) for name in FALLBACKS},
    **{path.stem: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))},
    "TRAINING": TRAINING,
    "EXPRESSIONS": EXPRESSIONS,
}


class Generation(Extension):
    """Written after transformers' AssistantTracker."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _support(self, context, caller):
        return caller()


class Refused(Exception):
    pass


def plain(source, values):
    def refuse(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source).render(values)


def merged(chat):
    """What the system says put before what the user does, for templates that refuse a system; two users as one."""
    if [message["role"] for message in chat] == ["user", "user"]:
        return [{"role": "user", "content": "\n\n".join(m["content"] for m in chat if m["content"])}]
    if chat[0]["role"] != "system":
        return chat
    return [{"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}, *chat[2:]]


@pytest.fixture(scope="module")
def process():
    shared = TemplateProcess()
    yield shared
    shared.close()


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_same_as_plain_jinja2(source, chat, process):
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", process=process)
    for tools in (None, TOOLS):
        for variables in ({}, {"add_generation_prompt": False, "enable_thinking": False, "date_string": "1 Jan"}):
            values = {
                "messages": CHATS[chat],
                "bos_token": "<s>",
                "eos_token": "</s>",
                "add_generation_prompt": True,
                **variables,
                **({"tools": tools} if tools else {}),
            }
            try:
                wanted = plain(source, values)
            except Refused as refusal:
                with suppress(Refused):
                    wanted = plain(source, {**values, "messages": merged(CHATS[chat])})
                    assert template.render(CHATS[chat], tools=tools, variables=variables) == wanted
                    continue
                with pytest.raises(TemplateError) as caught:
                    template.render(CHATS[chat], tools=tools, variables=variables)
                assert str(caught.value) == f"the chat template refuses: {refusal}"
            except (jinja2.TemplateError, TypeError) as error:
                with pytest.raises(TemplateError) as caught:
                    template.render(CHATS[chat], tools=tools, variables=variables)
                assert str(error) in str(caught.value)
            else:
                assert template.render(CHATS[chat], tools=tools, variables=variables) == wanted
