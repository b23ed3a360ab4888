"""A decoder, tokenizer and template small enough to be obviously right."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.engine import Engine
from edgerun.errors import Cancelled, UnsupportedError
from edgerun.formats.checked_tensors import Form
from edgerun.kv import KvLayer, KvLedger, KvSequence, PagePool, layer_groups
from edgerun.models import Batch, Decoder, Stretch, Wave
from edgerun.models.places import Pass, Run
from edgerun.weights.identity import ModelIdentity

BOS, EOS, IM_START, IM_END = 256, 257, 258, 259
VOCAB = 260


GROUPS = layer_groups([KvLayer(kv_heads=1, head_dim=4, head_dim_v=4)])
PAGE_BYTES = GROUPS[0].page_bytes  # 256 positions


class FakeSequence(KvSequence):
    """Holds the ids themselves, so that logits can only come from what the sequence really holds; its pages are taken
    from a true pool. window: how far it can be cut and still go on; 0: to any length."""

    def __init__(self, pool: PagePool, capacity: int, window: int = 0) -> None:
        self.held: list[int] = []
        super().__init__(pool, capacity)
        self.window = window

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.held)

    @length.setter
    def length(self, n: int) -> None:
        assert n <= len(self.held)
        del self.held[n:]

    def held_from(self, n: int) -> int:
        return 0 if self.window and 0 < n <= self.length - self.window else n

    def remember(self, tokens: Sequence[int]) -> None:
        """Nothing is shared."""

    def recall(self, tokens: Sequence[int]) -> int:
        return self.length

    def append(self, ids: Sequence[int]) -> None:
        for held in self._held:
            assert held.end >= self.length + len(ids), "positions without pages"
        self.held.extend(ids)

    def copy(self, n: int) -> FakeSequence:
        other = FakeSequence(self._pool, self.capacity, self.window)
        other.held = self.held[:n]
        return other

    def saved_forms(self) -> dict[str, Form]:
        return {"held": ("I32", (self.length,))}

    def saved(self, name: str) -> NDArray[np.int32]:
        return np.array(self.held, np.int32)

    def make_ready(self, length: int, forms: Mapping[str, Form]) -> dict[str, NDArray[Any]]:
        if dict(forms) != {"held": ("I32", (length,))}:
            raise UnsupportedError("kept in another way")
        self.reserve(length)
        self.read = np.zeros(length, np.int32)
        return {"held": self.read}

    def restored(self, length: int) -> None:
        self.held = self.read.tolist()


@dataclass(frozen=True)
class FakeSpec:
    vocab_size: int = VOCAB


class FakeDecoder(Decoder):
    """Logits are random numbers seeded by all ids so far. `on_layer` is called before each of 4 layers, `on_step` with
    each batch. pages: that there are; None: any number."""

    def __init__(
        self,
        vocab_size: int = VOCAB,
        *,
        layer_s: float = 0.0,
        forbid: Sequence[int] = (),
        pages: int | None = None,
        window: int = 0,
    ) -> None:
        self.pages = PagePool(GROUPS, KvLedger(None if pages is None else pages * PAGE_BYTES))
        self.window = window
        self.spec = FakeSpec(vocab_size)
        self.layer_s = layer_s
        self.forbid = list(forbid)
        self.fed: list[int] = []  # the length of each stretch
        self.batches: list[list[int]] = []  # the lengths of stretches of each step
        self.busy = False
        self.on_layer: Callable[[], None] = lambda: None
        self.on_step: Callable[[Batch], None] = lambda batch: None

    arithmetic = "numpy's random numbers"
    can_pause = False

    def new_cache(self, capacity: int) -> FakeSequence:
        return FakeSequence(self.pages, capacity, self.window)

    def step(self, batch: Batch, *, cancelled: Callable[[], bool] | None = None) -> list[NDArray[np.float32] | None]:
        assert not self.busy, "two threads in one decoder"
        self.busy = True
        try:
            self.on_step(batch)
            for _ in range(4):
                if cancelled is not None and cancelled():
                    raise Cancelled("cancelled")
                self.on_layer()
                time.sleep(self.layer_s)
            self.batches.append([len(stretch.ids) for stretch in batch.stretches])
            self.fed.extend(self.batches[-1])
            return [self._append(stretch) for stretch in batch.stretches]
        finally:
            self.busy = False

    def _append(self, stretch: Stretch) -> NDArray[np.float32] | None:
        sequence, ids = stretch.sequence, [int(i) for i in stretch.ids]
        assert isinstance(sequence, FakeSequence)
        sequence.reserve(len(ids))
        start = sequence.length
        sequence.append(ids)
        if stretch.want == "none":
            return None
        wanted = [sequence.length] if stretch.want == "last" else range(start + 1, sequence.length + 1)
        rows = np.stack([self.row(sequence.held[:n]) for n in wanted])
        return rows[:, :8] if stretch.want == "hidden" else rows

    def row(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after `ids`."""
        rng = np.random.default_rng(zlib.crc32(np.array(ids, np.int64).tobytes()))
        row = (3 * rng.standard_normal(self.spec.vocab_size)).astype(np.float32)
        row[self.forbid] = -100
        return row


class LayeredDecoder(FakeDecoder):
    """One whose prompts can pass some of its 4 layers now and others later. `on_wave` is called with each, and the rows
    that pass it."""

    can_pause = True
    on_wave: Callable[[int], None] = staticmethod(lambda rows: None)

    def start(self, batch: Batch) -> Wave:
        stretches = batch.stretches
        for each in stretches:
            each.sequence.reserve(len(each.ids))
        runs = tuple(Run(each.sequence, each.sequence.length, len(each.ids)) for each in stretches)
        wave = Wave(
            tuple(each.want for each in stretches), Pass(runs, (), few=False), np.zeros((batch.rows, 1), np.float32)
        )
        self.stretches = {wave: stretches}
        return wave

    def go_on(
        self, wave: Wave, pause: Callable[[], bool], *, cancelled: Callable[[], bool] | None = None
    ) -> list[NDArray[np.float32] | None] | None:
        first = wave.layers
        while wave.layers < 4:
            if wave.layers > first and pause():
                return None
            if cancelled is not None and cancelled():
                raise Cancelled("cancelled")
            for run in wave.task.runs:
                assert run.sequence.length == run.start, "a sequence changed under a wave"
                assert run.sequence._held[0].end >= run.start + run.rows, "its pages are gone"
            self.on_wave(wave.task.rows)
            wave.layers += 1
        stretches = self.stretches.pop(wave)
        self.batches.append([len(each.ids) for each in stretches])
        return [self._append(each) for each in stretches]


class FakeTokenizer:
    """A token is a byte; after them BOS, EOS and a chat's two marks."""

    vocab_size = VOCAB
    add_space_prefix = False
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    eog_ids = frozenset((EOS, IM_END))
    suppressed_ids: frozenset[int] = frozenset()
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

    def token_id(self, text: str) -> int | None:
        return next((i for i, mark in self.marks.items() if mark == text), None)

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
