"""Every argument of every public call, with values that nobody should pass.

The calls and their arguments are found by their signatures, so that a new one is tried too. What may come is an answer
or an error of ours; and the model must answer afterwards as it did before.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator, Callable, Container, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tiny_model import make_tiny_model

from api.hostile import hostile
from edgerun import LLM, AsyncLLM, SamplingParams, Session
from edgerun.api.calibration import calibrate_model
from edgerun.api.planning import plan_model
from edgerun.engine import SamplingOptions
from edgerun.errors import EdgerunError, UsageError
from edgerun.options import LOADING, SAMPLING, LoadKeywords, LoadOptions, MachineKeywords, PlanKeywords

KERNELS = os.environ.get("EDGERUN_KERNELS", "auto")
PROMPT = "the man was in the house"
MOST_ITEMS = 50  # of an endless answer
LONGEST_S = 60  # a guard against calls that never end, not a measurement

# A good value for each required argument, by its name.
GOOD: dict[str, Any] = {
    "prompt": PROMPT,
    "messages": [{"role": "user", "content": "Hi"}],
    "message": "Hi",
    "text": PROMPT,
    "texts": [PROMPT],
    "input": PROMPT,
    "ids": [1, 2, 3],
    "n": 1,
    "options": {"top_k": 5},
    "path": "session.safetensors",
}
NOT_TRIED = {"from_engine", "wrap", "close", "load", "answer"}  # answer: the library's own, over checked arguments
EXPANDED = {
    each.__name__: list(get_type_hints(each)) for each in (SamplingOptions, LoadKeywords, PlanKeywords, MachineKeywords)
}
# Sessions and awaited calls hand these on together, so one of them tells how.
PASSED_ON = set(SAMPLING) - {"logit_bias", "max_tokens"}

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::DeprecationWarning")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", context=128)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, kernels=KERNELS) as llm:
        yield llm


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # where files of strange names may come to lie

    def hangs(number: int, frame: Any) -> None:
        raise AssertionError("a call does not end")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def public(kind: type) -> list[str]:
    names = [name for name, _ in inspect.getmembers(kind, inspect.isfunction)]
    return [name for name in names if not name.startswith("_") and name not in NOT_TRIED]


def arguments_of(call: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """All arguments, those of `**options` by their names; and good values for the required ones."""
    names, good = [], {}
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            names += EXPANDED.get(str(parameter.annotation).removeprefix("Unpack[").removesuffix("]"), [])
            continue
        names.append(name)
        if parameter.default is inspect.Parameter.empty:
            good[name] = GOOD[name]
    return names, good


def complaint(call: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What came that should not; "" when all is well."""
    try:
        answer = call(**arguments)
        if inspect.isgenerator(answer):
            for _ in islice(answer, MOST_ITEMS):
                pass
            answer.close()
    except EdgerunError as error:
        return "" if len(str(error)) < 4000 and str(error) else f"a message of {len(str(error))} letters"
    except Exception as error:  # noqa: BLE001  (what else may come is the question)
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def complaints(
    where: str, call: Callable[..., Any], *, more: dict[str, Any] | None = None, without: Container[str] = ()
) -> list[str]:
    names, good = arguments_of(call)
    found = []
    for name in names:
        if name in without:
            continue
        short = (
            {"max_tokens": 2} if "max_tokens" in names and name not in ("max_tokens", "max_completion_tokens") else {}
        )
        for label, value in hostile().items():
            said = complaint(call, {**good, **short, **(more or {}), name: value})
            if said:
                found.append(f"{where}({name}={label}): {said}")
    return found


@pytest.mark.parametrize("name", public(LLM))
def test_calls_of_a_model(llm: LLM, name: str) -> None:
    reference = llm.complete(PROMPT, temperature=0, max_tokens=8)
    assert complaints(f"LLM.{name}", getattr(llm, name)) == []
    again = llm.complete(PROMPT, temperature=0, max_tokens=8)
    assert again.token_ids == reference.token_ids


@pytest.mark.parametrize("name", public(Session))
def test_calls_of_a_session(llm: LLM, name: str) -> None:
    def call(**arguments: Any) -> Any:
        session = llm.session()
        session.complete(PROMPT, temperature=0, max_tokens=1)
        session.messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        return getattr(session, name)(**arguments)

    call.__signature__ = inspect.signature(getattr(llm.session(), name))  # type: ignore[attr-defined]
    assert complaints(f"Session.{name}", call, without=PASSED_ON) == []


def test_messages_of_a_session_are_the_users(llm: LLM) -> None:
    def call(messages: Any) -> Any:
        session = llm.session()
        session.messages = messages
        session.undo()
        session.chat("Hi", max_tokens=2)

    assert complaints("Session.messages", call) == []


def test_sampling_params(llm: LLM) -> None:
    assert complaints("SamplingParams", SamplingParams, more={"temperature": 0}) == []
    assert complaints("with_options", SamplingParams().with_options) == []


@pytest.mark.parametrize("name", public(AsyncLLM))
def test_awaited_calls(llm: LLM, name: str) -> None:
    """They pass their arguments on: what they catch wrongly would be lost in another thread."""
    wrapped = AsyncLLM.wrap(llm)

    def call(**arguments: Any) -> Any:
        async def main() -> None:
            answer = getattr(wrapped, name)(**arguments)
            if inspect.isawaitable(answer):
                answer = await answer
            if isinstance(answer, AsyncIterator):
                async for _ in answer:
                    pass

        asyncio.run(main())

    call.__signature__ = inspect.signature(getattr(wrapped, name))  # type: ignore[attr-defined]
    assert complaints(f"AsyncLLM.{name}", call, without=PASSED_ON) == []


def test_loading(path: Path) -> None:
    """Values that cannot be are refused before the model is looked at; the others load it."""
    names = get_type_hints(LoadKeywords)
    assert list(LOADING) == [f for f in LoadOptions.__dataclass_fields__] and set(names) == set(LOADING)
    found = []
    for name in names:
        for label, value in hostile().items():
            try:
                options = LoadOptions(**{name: value})
            except UsageError as error:
                assert name in str(error)
                continue
            except Exception as error:  # noqa: BLE001
                found.append(f"{name}={label}: {type(error).__name__}: {error}")
                continue
            if name in ("events", "prefetch") or getattr(options, name) == getattr(LoadOptions(), name):
                continue

            def load(name: str = name, value: Any = value) -> None:
                LLM(path, **{"kernels": KERNELS, name: value}).close()

            said = complaint(load, {})
            if said:
                found.append(f"LLM({name}={label}): {said}")
    assert found == []


@pytest.mark.parametrize("make", [LLM, AsyncLLM, plan_model, calibrate_model], ids=lambda make: make.__name__)
def test_names_of_models(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = [f"{label}: {said}" for label, value in hostile().items() if (said := complaint(make, {"model": value}))]
    assert found == []


def test_plans_and_calibrations(path: Path) -> None:
    for call in (plan_model, calibrate_model):
        names, _ = inspect.signature(call).parameters, None
        for name in (each for each in names if each not in ("model", "options")):
            for label, value in hostile().items():
                if name == "measure" or (name == "again" and isinstance(value, bool)) or value is None:
                    continue  # measuring takes seconds, and has no more arguments
                if name in ("backends", "most_error") and not isinstance(value, str | bytes):
                    continue
                said = complaint(call, {"model": path, name: value})
                assert not said, f"{call.__name__}({name}={label}): {said}"
        with pytest.raises(UsageError, match="colour"):
            call(path, colour="red")  # type: ignore[operator]


def test_one_declaration_an_option() -> None:
    assert list(SAMPLING) == [f for f in SamplingParams.__dataclass_fields__]
    assert set(get_type_hints(SamplingOptions)) == set(SAMPLING)


@pytest.mark.parametrize("text", ["-1", "0", "1025", "100000", "1e3", "", "auto ", "9" * 5000, "inf"])
def test_the_command_line_parses_by_the_same_declaration(text: str) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number from 1 to 1024"):
        LOADING["threads"].parse("threads", text)
