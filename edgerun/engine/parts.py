"""What the engine needs of a decoder, a tokenizer and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.checked_tensors import Form

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`, and what else the model's template knows."""


class Cache(Protocol):
    """Keys and values of `length` positions (`kv.KvSequence`)."""

    spare: bool  # may be emptied when another cache needs the memory

    @property
    def length(self) -> int: ...

    def reserve(self, tokens: int, at_once: int | None = None) -> None: ...

    def held_from(self, n: int) -> int: ...

    def remember(self, tokens: Sequence[int]) -> None: ...

    def recall(self, tokens: Sequence[int]) -> int: ...

    def release(self) -> None: ...

    def truncate(self, n: int) -> None: ...

    def copy(self, n: int) -> Self: ...

    def saved_forms(self) -> Mapping[str, Form]: ...

    def saved(self, name: str) -> NDArray[Any]: ...

    def restore(self, length: int, forms: Mapping[str, Form], read: Callable[[str], NDArray[Any]]) -> None: ...


class Spec(Protocol):
    """Of `models.ModelSpec`."""

    @property
    def vocab_size(self) -> int: ...


class Store(Protocol):
    """Of `weights.WeightStore`."""

    def statistics(self) -> dict[str, float]: ...


class DecoderLike(Protocol):
    """`models.Decoder`; one call at a time, results are new arrays."""

    @property
    def spec(self) -> Spec: ...

    @property
    def store(self) -> Store: ...

    @property
    def arithmetic(self) -> str: ...

    def new_cache(self, capacity: int) -> Any: ...

    def forward(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: Any,
        *,
        logits: Literal["last", "all", "none"] = "last",
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32] | None: ...

    def hidden(
        self,
        ids: Sequence[int] | NDArray[np.int32],
        cache: Any,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[np.float32]: ...


class TokenizerLike(Protocol):
    """`text.Tokenizer`."""

    add_space_prefix: bool

    @property
    def vocab_size(self) -> int: ...

    @property
    def eog_ids(self) -> frozenset[int]: ...

    @property
    def add_bos(self) -> bool: ...

    @property
    def bos_id(self) -> int | None: ...

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        limit: int | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[int]: ...

    def check_length(self, text: str, limit: int) -> None: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str: ...

    def is_special(self, token_id: int) -> bool: ...


class TemplateLike(Protocol):
    """`text.ChatTemplate`."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str: ...
