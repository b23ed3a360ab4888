"""Classes of `edgerun.records` beside those of `dataclasses`: the same but for when they are finished."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from edgerun import records


def classes(dataclass: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A frozen class, one that inherits from it, and one that may be changed."""

    @dataclass(frozen=True)
    class Point:
        x: int
        y: float = 2.0
        names: list[str] = dataclasses.field(default_factory=list, hash=False)
        note: str = dataclasses.field(default="", compare=False, repr=False)
        many: ClassVar[int] = 3

        @property
        def sum(self) -> float:
            return self.x + self.y

    @dataclass(frozen=True)
    class Named(Point):
        name: str = "none"
        length: int = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "length", len(self.name))

    @dataclass
    class Open:
        a: int
        b: tuple[int, ...] = ()

    return Point, Named, Open


OURS, THEIRS = classes(records.dataclass), classes(dataclasses.dataclass)


@pytest.mark.parametrize("which, given, named", [
    (0, (1,), {}), (0, (1, 3.0, ["a"], "b"), {}), (0, (), {"x": 1, "note": "c"}), (0, (1,), {"names": ["d"]}),
    (1, (1, 2.0), {"name": "abc"}), (2, (1,), {}), (2, (1, (2,)), {}),
])  # fmt: skip
def test_as_dataclasses_has_it(which: int, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    ours, theirs = OURS[which](*given, **named), THEIRS[which](*given, **named)
    assert repr(ours) == repr(theirs) and vars(ours) == vars(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert ours == OURS[which](*given, **named) and ours != theirs and ours != 1
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
    assert OURS[which].__match_args__ == THEIRS[which].__match_args__
    first = dataclasses.fields(ours)[0].name
    assert (
        dataclasses.replace(ours, **{first: 7}) != ours and getattr(dataclasses.replace(ours, **{first: 7}), first) == 7
    )
    if which < 2:
        assert hash(ours) == hash(theirs) and dataclasses.replace(ours, note="other") == ours
        for name in (first, "unheard_of"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(ours, name, 1)
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(ours, name)
    else:
        ours.a = 4
        assert ours.a == 4
        with pytest.raises(TypeError):
            hash(ours)


@pytest.mark.parametrize("given, named", [
    ((), {}), ((1, 2.0, [], "", 5), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((), {"y": 1.0}),
])  # fmt: skip
def test_wrong_arguments(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    for cls in (OURS[0], THEIRS[0]):
        with pytest.raises(TypeError):
            cls(*given, **named)


def test_a_class_with_its_own_init_is_refused() -> None:
    class Own:
        def __init__(self) -> None: ...

    with pytest.raises(TypeError, match="Own has an __init__"):
        records.dataclass(Own)


def test_finished_once_by_the_first_of_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that make one meanwhile wait for it; a class that is only passed by costs nothing."""
    finished, ready = [], threading.Barrier(8)
    finish = dataclasses.dataclass

    def slowly(**options: Any) -> Callable[[type], type]:
        def made(cls: type) -> type:
            finished.append(cls)
            threading.Event().wait(0.05)
            return finish(**options)(cls)

        return made

    monkeypatch.setattr(dataclasses, "dataclass", slowly)
    point, named, other = classes(records.dataclass)
    assert not finished
    made: list[Any] = []

    def make() -> None:
        ready.wait()
        made.append(named(1))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [named(1)] * 8 and made[0].sum == 3.0
    assert sorted(cls.__name__ for cls in finished) == ["Named", "Point"] and other not in finished
