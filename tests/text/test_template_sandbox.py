"""Chat templates from files that nobody vouches for: no way out, no end of time or memory."""

import resource
import time

import pytest

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate, sandbox

MESSAGES = [{"role": "user", "content": "hi"}]
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x | length }}"
BIG = "{% set b = 'x' * 4000000 %}"


def grow(start, step):
    return GROW.replace("START", start).replace("STEP", step)


HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}",
    "text in loops": "{% for a in range(60000) %}" + "y" * 100_000 + "{% endfor %}",
    "strings in loops": "{% for a in range(60000) %}{{ '" + "y" * 100_000 + "' }}{% endfor %}",
    "captured text": BIG + "{% set y %}{% for a in range(60000) %}{{ b }}{% endfor %}{% endset %}",
    "calls without end": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "calls that double": ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"),
    "loops that call themselves": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "text times": "{{ 'x' * 10**10 }}",
    "list times": "{{ ([1] * 10**10) | length }}",
    "text doubling by ~": grow("'xxxx'", "ns.x ~ ns.x"),
    "text doubling by +": grow("'xxxx'", "ns.x + ns.x"),
    "list doubling": grow("[1]", "ns.x + ns.x"),
    "number squaring": grow("10", "ns.x * ns.x"),
    "power": "{{ 10 ** 10 ** 10 ** 10 ** 10 }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "expandtabs": "{{ ('\\t' * 4000).expandtabs(10**6) }}",
    "replace": BIG + "{{ b.replace('x', b) }}",
    "replace filter": BIG + "{{ b | replace('x', b) }}",
    "join": BIG + "{{ b.join(b) }}",
    "join filter": BIG + "{{ range(60000) | join(b) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format width": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "indent": "{% set b = 'x\\n' * 1000000 %}{{ b | indent(256) }}",
    "json": "{{ messages | tojson(indent=100000) }}",
    "date": "{{ strftime_now('%Y' * 1000) }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "format attributes": "{{ '{0.__class__}'.format(messages) }}" + "{{ messages.append(1) }}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of a message": "{{ messages[0].update({'role': 'x'}) }}",
    "other files": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}",
    "depth": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "size": "x" * (1 << 21),
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped_soon(source, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_RENDER_S", 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)
    assert time.monotonic() - started < 5
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 300 * 1024


def test_the_message_tells_the_limit():
    with pytest.raises(TemplateError, match="asks for a range of 1000000; at most 65536"):
        ChatTemplate("{{ range(1000000) }}").render(MESSAGES)


def test_long_conversations_are_no_attack():
    messages = [{"role": "user", "content": "word " * 2000}] * 500
    source = "{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}\n{% endfor %}"
    assert len(ChatTemplate(source).render(messages)) > 4_000_000


def test_ordinary_expressions_still_work():
    source = (
        "{{ 'a' * 3 }}{{ 2 ** 10 }}{{ '%s-%03d' % ('x', 7) }}{{ '{:>4}'.format('y') }}"
        "{{ 'a,b'.split(',') | join('+') }}{{ 'x\\ny' | indent(2) }}{{ [1, 2] + [3] }}{{ 'ab' ~ 1 }}"
        "{{ range(3) | list }}{{ 'AbC'.lower() | title }}"
        "{{ none }}{{ 1.5 }}{{ messages | map(attribute='role') | list }}{{ {'a': 1}.items() | list }}"
    )
    assert ChatTemplate(source).render(MESSAGES) == (
        "aaa1024x-007   ya+bx\n  y[1, 2, 3]ab1[0, 1, 2]AbcNone1.5['user'][('a', 1)]"
    )
