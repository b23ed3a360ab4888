"""What faults are injected into: small models with a vocabulary and a template, resident and with hardly any room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from edgerun import LLM
from edgerun.api import loading
from edgerun.events import Event, ignore
from tests.models.instances import INSTANCES, write
from tests.text.vocabularies import sentencepiece

CONTEXT = 128
REFUSED = "refuse this"  # a message that the template does not like
TEMPLATE = (
    "{% for m in messages %}{% if '" + REFUSED + "' in m.content %}{{ raise_exception('refused') }}{% endif %}"
    "<|user|>{{ m.role }} {{ m.content }}{% endfor %}"
)


@dataclass(frozen=True)
class Subject:
    """An instance of `tests.models.instances` and how its weights are held: as a plan says that is changed by `tight`
    (nothing: resident)."""

    name: str
    tight: tuple[tuple[str, Any], ...] = ()

    @property
    def mode(self) -> str:
        """ "resident" or "streamed"."""
        return "streamed" if self.tight else "resident"

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"


def _streamed(name: str, **tight: Any) -> Subject:
    return Subject(name, (("wave_tokens", 8), *tight.items()))


SUBJECTS = (
    Subject("llama"),
    Subject("olmoe"),
    # Six slots for four experts used: a slot that leaks twice ends in a request that can never be served.
    _streamed("olmoe", mode="experts", slots=6),
    _streamed("qwen2moe", mode="experts", slots=5),
    _streamed("llama-Q4_0", mode="layers", pinned=1, layers=3),
    _streamed("relu-Q8_0", mode="layers", pinned=0, layers=3, neuron_slots=20),
    _streamed("smallthinker", mode="experts", slots=5),
)


class Models:
    """The files of all subjects, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """The file of an instance."""
        path = self._folder / f"{name}.gguf"
        if not path.exists():
            vocabulary = sentencepiece() | {"tokenizer.chat_template": TEMPLATE}
            write(INSTANCES[name], path, vocabulary)
        return path

    def load(self, subject: Subject, events: Callable[[Event], None] = ignore) -> LLM:
        """The subject's model through the library's front door; only the plan that it makes is another."""
        plan_weights = loading_plan()

        def planned(*args: Any, **more: Any) -> Any:
            return replace(plan_weights(*args, **more), **dict(subject.tight))

        with mock.patch("edgerun.api.weights.plan_weights", planned):
            return LLM(self.path(subject.name), context=CONTEXT, threads=2, events=events)


def loading_plan() -> Callable[..., Any]:
    """The function that plans, as `load_engine` finds it."""
    from edgerun.api.weights import plan_weights

    assert loading.load_engine is not None
    return plan_weights


@contextmanager
def loaded(models: Models, subject: Subject, events: Callable[[Event], None] = ignore) -> Iterator[LLM]:
    """`Models.load`, closed at the end."""
    with models.load(subject, events) as llm:
        yield llm
