"""What the engine needs of a tokenizer and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`, and what else the model's template knows."""


class TokenizerLike(Protocol):
    """`text.Tokenizer`."""

    add_space_prefix: bool

    @property
    def vocab_size(self) -> int: ...

    @property
    def eog_ids(self) -> frozenset[int]: ...

    @property
    def suppressed_ids(self) -> frozenset[int]: ...

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

    def token_id(self, text: str) -> int | None: ...

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
