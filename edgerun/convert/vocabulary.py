"""A tokenizer's vocabulary as GGUF metadata. Source: the GGUF specification, llama.cpp's llama-vocab.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgufWriter, ValueKind

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "\u2581"  # how SentencePiece writes a space


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`; the numbers are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Vocabulary:
    """Tokens in order of their ids, and how text becomes tokens.

    `model` is "llama" (SentencePiece: scores) or "gpt2" (byte-level BPE: merges). `special` maps "bos",
    "eos", "unknown", "padding", "eot" ... to ids. `templates` maps names to chat templates, "" to the
    default one. `suppressed`: ids that the model must never choose.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    templates: dict[str, str] = field(default_factory=dict)
    suppressed: list[int] = field(default_factory=list)

    def resize(self, n_tokens: int) -> list[str]:
        """Bring the vocabulary to the rows of the embedding: pad with unused tokens, or drop tokens added
        on top that no row stands for. Returns the tokens dropped. FormatError when ordinary ones would be
        lost."""
        dropped = self.tokens[n_tokens:]
        if any(type_ == TokenType.NORMAL for type_ in self.types[n_tokens:]):
            raise FormatError(
                f"the tokenizer has {len(self.tokens)} tokens, the model's embedding only {n_tokens} rows: "
                "they do not belong together"
            )
        del self.tokens[n_tokens:], self.types[n_tokens:]
        for token_id in range(len(self.tokens), n_tokens):
            self.tokens.append(f"[PAD{token_id}]")
            self.types.append(TokenType.UNUSED)
        if self.scores is not None:
            self.scores = (self.scores + [-1000.0] * n_tokens)[:n_tokens]
        self.special = {name: token_id for name, token_id in self.special.items() if token_id < n_tokens}
        self.suppressed = [token_id for token_id in self.suppressed if token_id < n_tokens]
        return dropped

    def write(self, writer: GgufWriter) -> None:
        """Add the `tokenizer.*` keys. FormatError for text that is no Unicode: JSON can spell half a character."""
        for text in (*self.tokens, *(self.merges or ()), *self.templates, *self.templates.values()):
            try:
                text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise FormatError(f"the tokenizer holds {text[:40]!r}, which is no Unicode: {error.reason}") from None
        writer.add("tokenizer.ggml.model", self.model)
        writer.add("tokenizer.ggml.pre", self.pre)
        writer.add("tokenizer.ggml.tokens", self.tokens, ValueKind.STRING)
        if self.scores is not None:
            writer.add("tokenizer.ggml.scores", np.asarray(self.scores, np.float32))
        writer.add("tokenizer.ggml.token_type", np.asarray(self.types, np.int32))
        if self.merges is not None:
            writer.add("tokenizer.ggml.merges", self.merges, ValueKind.STRING)
        for name, token_id in self.special.items():
            writer.add(f"tokenizer.ggml.{name}_token_id", token_id, ValueKind.UINT32)
        writer.add("tokenizer.ggml.add_bos_token", self.add_bos)
        writer.add("tokenizer.ggml.add_eos_token", self.add_eos)
        if self.add_space_prefix is not None:
            writer.add("tokenizer.ggml.add_space_prefix", self.add_space_prefix)
        if self.suppressed:
            writer.add("tokenizer.ggml.suppress_tokens", np.asarray(self.suppressed, np.int32))
        named = {name: text for name, text in self.templates.items() if name}
        if named:
            writer.add("tokenizer.chat_templates", list(named), ValueKind.STRING)
        for name, text in self.templates.items():
            writer.add("tokenizer.chat_template" + (f".{name}" if name else ""), text)


def byte_types(tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """Mark `<0x0A>` and the like as bytes where they are listed as ordinary tokens."""
    return [
        TokenType.BYTE if type_ == TokenType.NORMAL and _BYTE_TOKEN.fullmatch(token) else type_
        for token, type_ in zip(tokens, types, strict=True)
    ]


def llama2c_vocabulary(entries: Sequence[tuple[bytes, float]], where: str) -> Vocabulary:
    """The vocabulary of a llama2.c tokenizer.bin: ids 0, 1, 2 are unknown, BOS, EOS; spaces are plain
    spaces."""
    if len(entries) < 3:
        raise FormatError(f"{where}: {len(entries)} tokens; a llama2.c tokenizer begins with <unk>, <s>, </s>")
    tokens = ["<unk>", "<s>", "</s>"]
    tokens += [text.decode("utf-8", "surrogateescape").replace(" ", SPACE) for text, _ in entries[3:]]
    types: list[int] = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.NORMAL] * (len(entries) - 3)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=byte_types(tokens, types),
        scores=[score for _, score in entries],
        special={"bos": 1, "eos": 2, "unknown": 0},
        add_bos=True,
        add_space_prefix=True,
    )


def add_special(vocabulary: Vocabulary, named: Mapping[str, int | None]) -> None:
    """Note special ids that exist and are not known yet."""
    for name, token_id in named.items():
        if token_id is not None and 0 <= token_id < len(vocabulary.tokens):
            vocabulary.special.setdefault(name, token_id)
