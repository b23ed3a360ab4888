"""Values that nobody should pass, by what they are called in a report."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, UserList, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class LyingText(str):
    """A str whose own methods fail."""

    def encode(self, *arguments: Any, **more: Any) -> bytes:
        raise RuntimeError("encode")

    def split(self, *arguments: Any, **more: Any) -> list[str]:
        raise RuntimeError("split")

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class LyingNumber(int):
    """An int whose own conversions fail."""

    def __int__(self) -> int:
        raise RuntimeError("int")

    def __index__(self) -> int:
        raise RuntimeError("index")

    def __float__(self) -> float:
        raise RuntimeError("float")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class Stubborn:
    """An object whose methods fail: whoever looks at it must not be surprised."""

    def _fail(self, *arguments: Any) -> Any:
        raise RuntimeError("stubborn")

    __repr__ = __str__ = __len__ = __getitem__ = __int__ = __index__ = __float__ = __bool__ = _fail
    __eq__ = __hash__ = __fspath__ = __array__ = __contains__ = _fail  # type: ignore[assignment]


def _deep(n: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(n):
        value = [value]
    return value


def _circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def hostile() -> dict[str, Any]:
    """Fresh ones: some of them can be used up."""
    return {
        "None": None,
        "True": True,
        "False": False,
        "0": 0,
        "1": 1,
        "-1": -1,
        "5": 5,
        "10**6": 10**6,
        "2**31": 2**31,
        "2**63": 2**63,
        "2**64": 2**64,
        "-2**63": -(2**63),
        "10**400": 10**400,
        "10**5000": 10**5000,
        "0.5": 0.5,
        "-0.0": -0.0,
        "5e-324": 5e-324,
        "1e-40": 1e-40,
        "1e308": 1e308,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "1j": 1j,
        "Decimal": Decimal("0.5"),
        "Decimal NaN": Decimal("sNaN"),
        "Fraction": Fraction(10**400, 3),
        "''": "",
        "' '": " ",
        "NUL": "\0",
        "lone surrogate": "\udc80",
        "other lone surrogate": "a\ud800b",
        "300 letters": "x" * 300,
        "5000 letters": "x" * 5000,
        "org of 300 letters": "x" * 300 + "/y",
        "repository of 300 letters": "x/" + "y" * 300 + ":Q4_0",
        "300 digits": "9" * 300 + "G",
        "~nouser": "~no-such-user/x",
        "tilde": "~",
        "newline": "a\nb",
        "escape": "\x1b[2J",
        "emoji": "🦙" * 3,
        "bytes": b"Once",
        "bytearray": bytearray(b"Once"),
        "memoryview": memoryview(b"Once"),
        "lying text": LyingText("auto"),
        "lying number": LyingNumber(3),
        "[]": [],
        "()": (),
        "{}": {},
        "set": {1, 2},
        "[None]": [None],
        "['']": [""],
        "[1, 'a']": [1, "a"],
        "[2**70]": [2**70],
        "[1.5]": [1.5],
        "[True]": [True],
        "[[1]]": [[1]],
        "[b'a']": [b"a"],
        "[surrogate]": ["\udfff"],
        "[{}]": [{}],
        "[role 5]": [{"role": 5, "content": "x"}],
        "[no content]": [{"role": "user"}],
        "[content 5]": [{"role": "user", "content": 5}],
        "[deep content]": [{"role": "user", "content": _deep(2000)}],
        "{'messages': []}": {"messages": []},
        "{'self': 1}": {"self": 1},
        "{5: 5}": {5: 5},
        "{'a': deep}": {"a": _deep(2000)},
        "{'a': 1}": {"a": 1},
        "{-1: 1}": {-1: 1},
        "{0: inf}": {0: math.inf},
        "{0: 10**400}": {0: 10**400},
        "{0: None}": {0: None},
        "{2**70: 1}": {2**70: 1},
        "{None: None}": {None: None},
        "deep list": _deep(2000),
        "circular list": _circular(),
        "range": range(10**9),
        "generator": (i for i in (1, 2)),
        "endless": itertools.count(),
        "iterator": iter("ab"),
        "dict view": {"a": 1}.keys(),
        "deque": deque([1, 2]),
        "UserList": UserList([1]),
        "OrderedDict": OrderedDict(a=1),
        "object": object(),
        "stubborn": Stubborn(),
        "namespace": SimpleNamespace(is_set=5, text="x"),
        "function": lambda *arguments: None,
        "module": math,
        "Ellipsis": ...,
        "NotImplemented": NotImplemented,
        "Path": Path("no/such"),
        "Path NUL": Path("a\0b"),
        "exception": ValueError("x"),
        "int8": np.int8(3),
        "uint64": np.uint64(2**64 - 1),
        "float16": np.float16(0.5),
        "float64 nan": np.float64("nan"),
        "bool_": np.bool_(True),
        "str_": np.str_("a"),
        "array of ints": np.array([1, 2], np.int32),
        "array of floats": np.array([1.0, 2.0]),
        "array of bools": np.array([True, False]),
        "array of objects": np.array([1, "a", None], object),
        "array of texts": np.array(["a", "b"]),
        "array 0-d": np.array(5),
        "array 2-d": np.zeros((2, 2), np.int64),
        "array empty": np.zeros(0, np.int64),
        "array wild": np.array([2**63, 5], np.uint64),
        "structured array": np.zeros(2, [("a", "i4")]),
    }
