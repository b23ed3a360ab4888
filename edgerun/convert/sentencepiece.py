"""Read SentencePiece's `tokenizer.model`: the few protobuf fields that a vocabulary needs.

Source: sentencepiece_model.proto. ModelProto: 1 pieces (1 piece, 2 score, 3 type), 2 trainer_spec (3
model_type, 40 unk_id, 41 bos_id, 42 eos_id, 43 pad_id), 3 normalizer_spec (3 add_dummy_prefix).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgerun.convert.vocabulary import TokenType, Vocabulary, byte_types
from edgerun.errors import FormatError, NotFoundError, UnsupportedError

_MAX_FILE_BYTES = 64 << 20
_UNIGRAM, _BPE, _WORD, _CHAR = 1, 2, 3, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_sentencepiece(path: str | Path) -> Vocabulary:
    """The vocabulary of a SentencePiece model of kind BPE or CHAR (those that "llama" tokenizers are).

    NotFoundError, FormatError (with the byte), UnsupportedError for unigram and word models.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise FormatError(f"{path}: too large for a SentencePiece model ({path.stat().st_size} bytes)")
    data = path.read_bytes()
    tokens, scores, types = [], [], []
    kind, ids, dummy_prefix = _UNIGRAM, {40: 0, 41: 1, 42: 2, 43: -1}, True
    for number, value in _fields(data, path):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            text, score, type_ = _piece(value, path)
            tokens.append(text)
            scores.append(score)
            types.append(type_)
        elif number == 2:
            trainer = dict(_fields(value, path))
            kind = _number(trainer.get(3), _UNIGRAM)
            ids = {field: _signed(trainer.get(field), default) for field, default in ids.items()}
        elif number == 3:
            dummy_prefix = bool(_number(dict(_fields(value, path)).get(3), 1))
    if not tokens:
        raise FormatError(f"{path}: not a SentencePiece model: it holds no pieces")
    if kind not in (_BPE, _CHAR):
        name = {_UNIGRAM: "unigram", _WORD: "word"}.get(kind, str(kind))
        raise UnsupportedError(f"{path}: a SentencePiece model of kind {name}; edgerun converts BPE and char")
    names = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=byte_types(tokens, types),
        scores=scores,
        special={names[field]: number for field, number in ids.items() if 0 <= number < len(tokens)},
        add_bos=True,
        add_space_prefix=dummy_prefix,
    )


def _piece(data: bytes, path: Path) -> tuple[str, float, int]:
    fields = dict(_fields(data, path))
    text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise FormatError(f"{path}: a piece of the SentencePiece model is malformed")
    type_ = _number(fields.get(3), TokenType.NORMAL)
    if type_ not in list(TokenType):
        raise FormatError(f"{path}: a piece has the unknown type {type_}")
    return text.decode("utf-8", "surrogateescape"), struct.unpack("<f", score)[0], type_


def _number(value: int | bytes | None, default: int) -> int:
    return value if isinstance(value, int) else default


def _signed(value: int | bytes | None, default: int) -> int:
    number = _number(value, default)
    return number - (1 << 64) if number >= 1 << 63 else number


def _fields(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of one protobuf message; fixed-width values come as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position, path)
        wire = key & 7
        if wire == _VARINT:
            value, position = _varint(data, position, path)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position, path)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise FormatError(f"{path}: byte {position}: not a SentencePiece model (wire type {wire})")
        if length > len(data) - position:
            raise FormatError(f"{path}: byte {position}: a field of {length} bytes runs past the end")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise FormatError(f"{path}: byte {position}: not a SentencePiece model (a number does not end)")
