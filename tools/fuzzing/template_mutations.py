"""How chat templates are damaged. Everything follows from the `Random` given."""

from __future__ import annotations

import re
from random import Random

_FRAGMENTS = (
    "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{{ bos_token }}",
    "{% set x = ns.a %}", "{% set ns = namespace(a=1) %}", "{% for i in range(1000000000) %}{% endfor %}",
    "{{ 'a' * 100000000 }}", "{{ [1] * 100000000 }}", "{{ 10 ** 100000 }}", "{{ ''.join(['a'] * 1000000) }}",
    "{{ messages | tojson }}", "{{ messages | map(attribute='role') | list }}", "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}", "{{ m.__class__.__mro__ }}", "{{ lipsum }}",
    "{% macro f(a) %}{{ f(a) }}{% endmacro %}",
    "{{ f(1) }}", "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
    "{{ '%9999999d' % 1 }}", "{% set x = x ~ x %}", "{{ x | center(100000000) }}", "{% include 'x' %}",
    "{{ messages[-1]['content'] * 9999 }}", "{{ 1 / 0 }}",
    "{{ undefined.a.b }}", "{{ (1, 2) | sum(start=[]) }}", "{%- ", " -%}", "{#", "#}", "{{", "}}",
)  # fmt: skip


def damage_template(source: str, rng: Random) -> str:
    """Pieces put in, taken out, turned around; nested deeply."""
    text = source
    for _ in range(rng.choice((1, 2, 4, 8))):
        if rng.random() < 0.8:  # between tags, so that most of what comes of it compiles
            places = [0, len(text), *(match.start() for match in re.finditer(r"\{[{%#]|(?<=[}%#]\})", text))]
            at, end = sorted(rng.choice(places) for _ in range(2))
        else:
            at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0 | 1 | 2:
                text = text[:at] + rng.choice(_FRAGMENTS) + text[at:]
            case 3:
                text = text[:at] + text[min(end, at + 20) :]
            case 4:
                text = text[:at] + text[at:end] * rng.choice((2, 5)) + text[end:]
            case _:
                depth = rng.choice((10, 30, 300))
                piece = rng.choice(
                    ("{% if 1 %}|{% endif %}", "{% for i in [1, 2] %}|{% endfor %}", "{{ (|) }}", "{{ [|] }}")
                )
                front, back = piece.split("|")
                text = text[:at] + front * depth + back * depth + text[at:]
        text = text[:200_000]
    return text
