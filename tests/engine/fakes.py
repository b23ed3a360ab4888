"""A decoder, tokenizer and template small enough to be obviously right."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.engine import Engine
from edgerun.errors import Cancelled, UnsupportedError
from edgerun.formats.checked_tensors import Form
from edgerun.weights.identity import ModelIdentity

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
VOCAB = 260


@dataclass
class FakeCache:
    """Holds the ids themselves, so that logits can only come from what the cache really holds."""

    limit: int
    held: list[int] = field(default_factory=list)
    spare: bool = False
    window: int = 0  # how far it can be cut and still go on; 0: to any length

    @property
    def length(self) -> int:
        return len(self.held)

    def truncate(self, n: int) -> None:
        assert 0 <= n <= self.length and self.held_from(n) == n
        del self.held[n:]

    def held_from(self, n: int) -> int:
        return 0 if self.window and 0 < n <= self.length - self.window else n

    def remember(self, tokens: Sequence[int]) -> None:
        """Nothing is shared."""

    def recall(self, tokens: Sequence[int]) -> int:
        return self.length

    def reserve(self, tokens: int, at_once: int | None = None) -> None:
        assert self.length + tokens <= self.limit

    def release(self) -> None:
        self.held.clear()

    def copy(self, n: int) -> FakeCache:
        return FakeCache(self.limit, self.held[:n], window=self.window)

    def saved_forms(self) -> dict[str, Form]:
        return {"held": ("I32", (self.length,))}

    def saved(self, name: str) -> NDArray[np.int32]:
        return np.array(self.held, np.int32)

    def restore(self, length: int, forms: Mapping[str, Form], read: Callable[[str], NDArray[Any]]) -> None:
        if dict(forms) != {"held": ("I32", (length,))}:
            raise UnsupportedError("kept in another way")
        self.held = read("held").tolist()


@dataclass(frozen=True)
class FakeSpec:
    vocab_size: int = VOCAB


class FakeDecoder:
    """Logits are random numbers seeded by all ids so far. `on_layer` is called before each of 4 layers."""

    def __init__(self, vocab_size: int = VOCAB, *, layer_s: float = 0.0, forbid: Sequence[int] = ()) -> None:
        self.spec = FakeSpec(vocab_size)
        self.layer_s = layer_s
        self.forbid = list(forbid)
        self.fed: list[int] = []  # the length of each call
        self.busy = False
        self.on_layer: Callable[[], None] = lambda: None

    arithmetic = "numpy's random numbers"

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(capacity)

    def forward(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: FakeCache,
        *,
        logits: Literal["last", "all", "none"] = "last",
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32] | None:
        assert not self.busy, "two threads in one decoder"
        self.busy = True
        try:
            return self._forward([int(i) for i in ids], cache, logits, cancelled)
        finally:
            self.busy = False

    def _forward(
        self, ids: list[int], cache: FakeCache, logits: str, cancelled: Callable[[], bool] | None
    ) -> NDArray[np.float32] | None:
        assert ids and cache.length + len(ids) <= cache.limit
        for _ in range(4):
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled")
            self.on_layer()
            time.sleep(self.layer_s)
        self.fed.append(len(ids))
        start = cache.length
        cache.held.extend(ids)
        if logits == "none":
            return None
        wanted = [cache.length] if logits == "last" else range(start + 1, cache.length + 1)
        return np.stack([self.row(cache.held[:n]) for n in wanted])

    def row(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after `ids`."""
        rng = np.random.default_rng([7, *ids])
        row = (3 * rng.standard_normal(self.spec.vocab_size)).astype(np.float32)
        row[self.forbid] = -100
        return row

    def hidden(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: FakeCache,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32]:
        start = cache.length
        cache.held.extend(int(i) for i in ids)
        rows = [self.row(cache.held[: n + 1])[:8] for n in range(start, cache.length)]
        return np.stack(rows)


class FakeTokenizer:
    """A token is a byte; after them BOS, EOS and a chat's two marks."""

    vocab_size = VOCAB
    add_space_prefix = False
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    eog_ids = frozenset((EOS, IM_END))
    marks = {BOS: "<s>", EOS: "</s>", IM_START: "<|im_start|>", IM_END: "<|im_end|>"}

    def __init__(self, *, add_bos: bool = True) -> None:
        self.add_bos = add_bos

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        limit: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[int]:
        ids = [BOS] if add_special and self.add_bos else []
        while text:
            mark = next((i for i, m in self.marks.items() if parse_special and text.startswith(m)), None)
            piece = text[0] if mark is None else self.marks[mark]
            ids.extend(piece.encode() if mark is None else (mark,))
            text = text[len(piece) :]
        return ids

    def check_length(self, text: str, limit: int) -> None:
        """A byte is a token: any text may be tried."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return b"".join(b"" if i > 255 and skip_special else self.token_bytes(i) for i in ids).decode(
            "utf-8", "replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self.marks[token_id].encode()

    def token_text(self, token_id: int) -> str:
        return self.marks.get(token_id) or chr(token_id)

    def is_special(self, token_id: int) -> bool:
        return token_id > 255


class FakeTemplate:
    """ChatML, with BOS in front as many templates have it."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str:
        told = "".join(f"[{key}={value}]" for key, value in (variables or {}).items())
        told += "".join(f"[tool {tool['name']}]" for tool in tools or ())
        body = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return "<s>" + told + body + "<|im_start|>assistant\n"


def fake_engine(decoder: FakeDecoder | None = None, *, context: int = 512, **more: Any) -> Engine:
    """An engine that writes random ASCII and never ends by itself."""
    if decoder is None:
        decoder = FakeDecoder(forbid=[*range(32), *range(127, VOCAB)])
    identity = ModelIdentity("a file", "a header")
    more = {"tokenizer": FakeTokenizer(), "template": FakeTemplate(), "identity": lambda: identity, **more}
    return Engine(decoder, context=context, **more)
