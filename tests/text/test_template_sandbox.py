"""Chat templates from files that nobody vouches for: no way out, no end of time or memory."""

import resource

import pytest

from edgerun.errors import TemplateError
from edgerun.text import ChatTemplate
from edgerun.text.template_process import AT_REST_BYTES, Limits, TemplateProcess

MESSAGES = [{"role": "user", "content": "hi"}]
LIMITS = Limits(wall_s=0.2, text_chars=1 << 20)
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x | length }}"
BIG = "{% set b = 'x' * 4000000 %}"
KEEP = (
    "{% set ns = namespace(all=[]) %}{% for i in range(60000) %}{% set ns.all = ns.all + [VALUE] %}{% endfor %}"
    "{{ ns.all | length }}"
)
NESTED = "{% set ns = namespace(x=[1, 1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


def grow(start, step):
    return GROW.replace("START", start).replace("STEP", step)


def keep(value):
    return BIG + KEEP.replace("VALUE", value)


HOSTILE = {
    # time
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for a in range(60000) %}{% for b in range(60000) %}{% endfor %}{% endfor %}",
    "nested comprehension": "{{ range(90000) | map('string') | map('center', 90000) | list | length }}",
    "text in loops": "{% for a in range(60000) %}" + "y" * 100_000 + "{% endfor %}",
    "strings in loops": "{% for a in range(60000) %}{{ '" + "y" * 100_000 + "' }}{% endfor %}",
    "captured text": BIG + "{% set y %}{% for a in range(60000) %}{{ b }}{% endfor %}{% endset %}",
    "calls without end": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loops that call themselves": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "text of nested lists": NESTED + "{{ ns.x }}",
    "text of nested lists by ~": NESTED + "{{ (ns.x ~ '') | length }}",
    "text of nested lists by %": NESTED + "{{ '%s' % ns.x }}",
    "repr by %": NESTED + "{{ '%r' % ns.x }}",
    "text of nested lists by format": NESTED + "{{ '{}'.format(ns.x) }}",
    "json of nested lists": NESTED + "{{ ns.x | tojson | length }}",
    "comparison of nested lists": NESTED + "{% set ms = namespace(x=[1, 1]) %}"
    "{% for i in range(40) %}{% set ms.x = [ms.x, ms.x] %}{% endfor %}{{ ns.x == ms.x }}",
    "quadratic sum": "{{ range(60000) | map('list', [1]) | sum(start=[]) }}"
    + "{% set l = [[1] * 1000] * 60000 %}{{ l | sum(start=[]) | length }}",
    "strip": BIG + "{% for i in range(60000) %}{% set y = b.lstrip('ax') %}{% endfor %}",
    "count": BIG + "{% for i in range(60000) %}{% set y = b.count('xxxxxxxxxxxxxxxxy') %}{% endfor %}",
    "find": BIG + "{{ b.find('x' * 2000000 + 'y' + 'x' * 1000000) }}" * 100,
    "idna": "{{ ('\\u00fc' * 100000).encode('idna') }}",
    "punycode": "{{ ('\\u00fc\\u4e00' * 400000).encode('punycode') }}",
    "strip of tags": "{{ ('<' * 1000000) | striptags }}" * 50,
    "wrapped words": "{{ ('a ' * 1000000) | wordwrap(1) }}",
    "number to text": "{{ (7 ** 600000) }}",
    "huge power": "{{ 10 ** (10 ** 8) }}",
    "power of powers": "{{ 10 ** 10 ** 10 ** 10 ** 10 }}",
    "product of huge numbers": "{% set n = 3 ** 2000000 %}{% for i in range(1000) %}{% set x = n * n %}{% endfor %}",
    "in": "{% set l = [0] * 1000000 %}{% for i in range(60000) %}{% if i + 1 in l %}{% endif %}{% endfor %}",
    "sort": "{% set l = range(90000) | list %}{% for i in range(60000) %}{% set y = l | sort %}{% endfor %}",
    "unique": "{% for i in range(60000) %}{% set y = range(90000) | unique | list %}{% endfor %}",
    "batches": "{{ range(90000) | batch(10**9, 1) | list }}",
    "slices": "{{ range(90000) | slice(10**9) | list }}",
    "a cycle": "{% set c = cycler(1) %}{% for i in range(90000) %}{% for j in range(90000) %}{{ c.next() }}"
    "{% endfor %}{% endfor %}",
    # memory
    "text times": "{{ 'x' * 10**10 }}",
    "folded while compiling": "{{ ('x' * 10**8) | length }}" * 20,
    "list times": "{{ ([1] * 10**10) | length }}",
    "text doubling by ~": grow("'xxxx'", "ns.x ~ ns.x"),
    "text doubling by +": grow("'xxxx'", "ns.x + ns.x"),
    "list doubling": grow("[1]", "ns.x + ns.x"),
    "number squaring": grow("10", "ns.x * ns.x"),
    "kept strings": keep("b ~ i"),
    "kept by upper": keep("b.upper() ~ i"),
    "kept by slices": keep("b[i:]"),
    "kept by translate": keep("b.translate({120: 'ab'})"),
    "translate": BIG + "{{ b.translate({120: b}) | length }}",
    "center": "{{ 'a' | center(10**9) }}",
    "centers": "{{ range(90000) | map('center', 10**6) | list | length }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ ('\\t' * 4000).expandtabs(10**6) }}",
    "replace": BIG + "{{ b.replace('x', b) }}",
    "replace filter": BIG + "{{ b | replace('x', b) }}",
    "join": BIG + "{{ b.join(b) }}",
    "join filter": BIG + "{{ range(60000) | join(b) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format width": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "format map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "indent": "{% set b = 'x\\n' * 4000000 %}{{ b | indent(256) }}",
    "json": "{{ [1] * 1000 | tojson(indent=1000000) }}{{ messages | tojson(indent=100000000) }}",
    "split": BIG + "{{ b.split('x') | list | length }}{{ (b * 4) | list | length }}",
    "encoded": BIG + "{{ b.encode('utf-32') | length }}{{ (b * 4).encode('utf-32') | length }}",
    "date": "{{ strftime_now('%Y' * 100000000) | length }}",
    "written": BIG + "{{ b }}",
    "an error's text": "{{ raise_exception('x' * 10**10) }}",
    "an attribute's name": BIG + "{{ messages[b * 100] }}",
    # the parser and the compiler
    "depth": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "depth of lists": "{{ " + "[" * 90000 + "]" * 90000 + " }}",
    "depth of signs": "{{ " + "-" * 300000 + "1 }}",
    "depth of nots": "{{ " + "not " * 100000 + "1 }}",
    "depth of filters": "{{ 1" + "|abs" * 100000 + " }}",
    "depth of blocks": "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    "depth of conditions": "{% if 1 %}" * 1000 + "{% endif %}" * 1000,
    "depth of data": "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "size": "x" * (1 << 21),
    # ways out
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.keys() }}",
    "format attributes": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "other files": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}",
}


@pytest.fixture(scope="module")
def process():
    shared = TemplateProcess()
    yield shared
    shared.close()


def peak_bytes(whose):
    return resource.getrusage(whose).ru_maxrss << 10


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped_and_the_next_rendering_works(source, process):
    before = {whose: peak_bytes(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    process.limits = LIMITS
    with pytest.raises(TemplateError, match="^the chat template "):
        ChatTemplate(source, process=process).render(MESSAGES)
    process.limits = Limits()
    assert ChatTemplate("{{ messages[0].content }}", process=process).render(MESSAGES) == "hi"
    assert peak_bytes(resource.RUSAGE_SELF) - before[resource.RUSAGE_SELF] < 50 << 20
    allowed = AT_REST_BYTES + LIMITS.memory(len(source) + 200)
    begun = peak_bytes(resource.RUSAGE_SELF)  # a child counts what its parent held when it was started
    assert peak_bytes(resource.RUSAGE_CHILDREN) <= max(before[resource.RUSAGE_CHILDREN], allowed, begun)
