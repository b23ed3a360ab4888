"""Dataclasses that are finished when the first of them is made.

`dataclasses` writes the source of six methods for each class and compiles it, which takes a millisecond on a slow
processor. A program that answers one question passes two hundred such classes and makes something of half of them: it
was a quarter of its time to the first token. Here a class gets its fields and methods when it is first called (or
asked for its fields), and methods that go through the list of fields, which are not compiled. All else is as
`dataclasses` has it, whose `fields`, `replace` and `asdict` see no difference.

A class and those it inherits from must all be made by this `dataclass`, or none.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """As `dataclasses.dataclass`. TypeError for a class that has an `__init__` of its own."""

        def begun(cls):
            if "__init__" in cls.__dict__:
                raise TypeError(f"{cls.__name__} has an __init__: it cannot be given another")
            unfinished = _Unfinished(cls, frozen, eq)
            cls.__init__ = _Later("__init__", unfinished)
            cls.__dataclass_fields__ = _Later("__dataclass_fields__", unfinished)
            return cls

        return begun if cls is None else begun(cls)


_ONE_AT_A_TIME = threading.RLock()  # finishing a class finishes those it inherits from
_set: Callable[[object, str, Any], None] = object.__setattr__
_MISSING: Any = dataclasses.MISSING


class _Unfinished:
    """A class whose methods are still to be made."""

    def __init__(self, cls: type, frozen: bool, eq: bool) -> None:
        self.cls = cls
        self._frozen = frozen
        self._eq = eq
        self._finished = False

    def finish(self) -> None:
        """Make them, once. `__init__` comes last: until then, other threads that make one wait here."""
        with _ONE_AT_A_TIME:
            if self._finished:
                return
            cls: Any = self.cls
            cls.__doc__ = (
                cls.__doc__ or cls.__name__
            )  # else `dataclasses` asks for the signature, and so for `__init__`
            dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
            fields = dataclasses.fields(cls)
            methods: dict[str, Any] = {"__repr__": _shown(fields)}
            if self._eq:
                methods["__eq__"] = _equal(fields)
                methods["__hash__"] = _hashed(fields) if self._frozen else None
            if self._frozen:
                methods |= _frozen(cls, fields)
            for name, method in methods.items():
                if name not in cls.__dict__ or (name == "__hash__" and cls.__dict__[name] is None):
                    setattr(cls, name, method)
            cls.__init__ = _initialised(cls, fields)
            self._finished = True


class _Later:
    """Stands where a finished class has something, and finishes the class of whoever looks there."""

    def __init__(self, name: str, unfinished: _Unfinished) -> None:
        self._name = name
        self._unfinished = unfinished

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        self._unfinished.finish()
        made = self._unfinished.cls.__dict__[self._name]
        return made.__get__(instance, owner) if hasattr(made, "__get__") else made


def _initialised(cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> Callable[..., None]:
    taken: list[tuple[str, Any, Any]] = [(f.name, f.default, f.default_factory) for f in fields if f.init]
    names = [name for name, _, _ in taken]
    made: list[tuple[str, Any]] = [
        (f.name, f.default_factory) for f in fields if not f.init and f.default_factory is not _MISSING
    ]
    then = hasattr(cls, "__post_init__")

    def __init__(self: Any, /, *given: Any, **named: Any) -> None:
        for name, value in zip(names, given, strict=False):
            _set(self, name, value)
        for name, value, factory in taken[len(given) :]:
            if name in named:
                value = named.pop(name)
            elif factory is not _MISSING:
                value = factory()
            elif value is _MISSING:
                raise TypeError(f"{cls.__name__}({', '.join(names)}) has got no {name}")
            _set(self, name, value)
        if named or len(given) > len(names):
            raise TypeError(f"{cls.__name__}({', '.join(names)}) has got {len(given)} and {', '.join(named) or 'none'}")
        for name, factory in made:
            _set(self, name, factory())
        if then:
            self.__post_init__()

    return __init__


def _shown(fields: tuple[dataclasses.Field[Any], ...]) -> Callable[[Any], str]:
    names = [field.name for field in fields if field.repr]

    @recursive_repr()
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _equal(fields: tuple[dataclasses.Field[Any], ...]) -> Callable[[Any, object], bool]:
    values = _values([field.name for field in fields if field.compare])

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    return __eq__


def _hashed(fields: tuple[dataclasses.Field[Any], ...]) -> Callable[[Any], int]:
    values = _values([field.name for field in fields if (field.compare if field.hash is None else field.hash)])

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __hash__


def _values(names: list[str]) -> Callable[[Any], Any]:
    return attrgetter(*names) if names else lambda _: ()


def _frozen(cls: Any, fields: tuple[dataclasses.Field[Any], ...]) -> dict[str, Any]:
    names = {field.name for field in fields}

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return {"__setattr__": __setattr__, "__delattr__": __delattr__}
