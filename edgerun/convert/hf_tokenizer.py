"""Tokenizer files of a Hugging Face directory -> GGUF vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgerun.convert.hf_pretokenizer import pretokenizer_name
from edgerun.convert.sentencepiece import read_sentencepiece
from edgerun.convert.tiktoken import read_tiktoken
from edgerun.convert.vocabulary import SPACE, TokenType, Vocabulary, add_special, byte_types
from edgerun.errors import FormatError, NotFoundError, UnsupportedError
from edgerun.formats.safetensors import read_json

_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "sep_token": "seperator",  # so spelled in GGUF
    "mask_token": "mask",
}
_TIKTOKEN = "tiktoken.model"
_ADDED_SCORE = -1000.0
_MAX_ID = 1 << 24


def read_hf_tokenizer(directory: Path, architecture: str, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a directory with tokenizer.json, tokenizer.model or tiktoken.model (or of such a file itself).

    NotFoundError when there is neither, FormatError when malformed, UnsupportedError for tokenizers that GGUF
    cannot describe.
    """
    given = directory if directory.is_file() else None
    root = directory.parent if given else directory
    json_path = given if given and given.suffix == ".json" else root / "tokenizer.json"
    model_path = given if given and given.suffix == ".model" else root / "tokenizer.model"
    tokenizer = read_json(json_path) if json_path.is_file() and given != model_path else None
    settings = _optional_json(root / "tokenizer_config.json")
    if model_path.is_file() and given != json_path and (tokenizer is None or _is_sentencepiece(tokenizer)):
        vocabulary = read_sentencepiece(model_path)
    elif tokenizer is None and (root / _TIKTOKEN).is_file():
        vocabulary = read_tiktoken(root / _TIKTOKEN)
    elif tokenizer is not None:
        vocabulary = _from_json(tokenizer, architecture, str(json_path))
    else:
        raise NotFoundError(
            f"{directory}: holds neither tokenizer.json nor tokenizer.model nor {_TIKTOKEN}; give --tokenizer"
        )
    _add_added(vocabulary, tokenizer, settings, str(root))
    _note_special(vocabulary, settings, config)
    _set_flags(vocabulary, tokenizer, settings)
    vocabulary.templates.update(_templates(root, settings))
    vocabulary.suppressed = _suppressed(root / "generation_config.json", len(vocabulary.tokens))
    return vocabulary


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Byte fallback is what sets SentencePiece-style BPE apart from byte-level BPE."""
    model = tokenizer.get("model")
    return isinstance(model, dict) and bool(model.get("byte_fallback"))


def _from_json(tokenizer: Mapping[str, Any], architecture: str, where: str) -> Vocabulary:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedError(f"{where}: a tokenizer of type {kind!r}; edgerun converts BPE")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise FormatError(f"{where}: the BPE model lacks vocab or merges")
    tokens = _by_id(vocab, where)
    pairs = [_pair(merge, where) for merge in merges]
    types: list[int] = [TokenType.UNUSED if token is None else TokenType.NORMAL for token in tokens]
    names = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    if not _is_sentencepiece(tokenizer):
        pre = pretokenizer_name(tokenizer.get("pre_tokenizer"), architecture, where)
        return Vocabulary("gpt2", pre, names, types, merges=[f"{left} {right}" for left, right in pairs])
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in vocab:
        types[vocab[unknown]] = TokenType.UNKNOWN
    return Vocabulary("llama", "default", names, byte_types(names, types), scores=_scores(names, pairs))


def _by_id(vocab: Mapping[str, Any], where: str) -> list[str | None]:
    ids = list(vocab.values())
    if not ids or any(type(i) is not int or not 0 <= i < min(_MAX_ID, 16 * len(ids) + 1024) for i in ids):
        raise FormatError(f"{where}: the vocabulary is empty, or its ids are not small whole numbers")
    tokens: list[str | None] = [None] * (max(ids) + 1)
    for token, token_id in vocab.items():
        if tokens[token_id] is not None:
            raise FormatError(f"{where}: {token!r} and {tokens[token_id]!r} have the same id {token_id}")
        tokens[token_id] = token
    return tokens


def _pair(merge: Any, where: str) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts):
        return parts[0], parts[1]
    raise FormatError(f"{where}: {merge!r} is not a merge of two tokens")


def _scores(tokens: list[str], pairs: list[tuple[str, str]]) -> list[float]:
    """SentencePiece merges what gives the token of the best score; a list of merges says the same by its
    order. Each token's score is minus the rank of the first merge that makes it."""
    rank: dict[str, int] = {}
    for left, right in pairs:
        rank.setdefault(left + right, len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _added(tokenizer: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of the tokens added on top; later ones override earlier ones."""
    listed = tokenizer.get("added_tokens") if tokenizer else None
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str):
            yield entry["id"], entry["content"], bool(entry.get("special"))
    decoder = settings.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else []:
        if key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            yield int(key), entry["content"], bool(entry.get("special"))


def _add_added(
    vocabulary: Vocabulary, tokenizer: Mapping[str, Any] | None, settings: Mapping[str, Any], where: str
) -> None:
    for token_id, text, special in _added(tokenizer, settings):
        if not 0 <= token_id < len(vocabulary.tokens) + (1 << 16):
            raise FormatError(f"{where}: the added token {text!r} has the impossible id {token_id}")
        while len(vocabulary.tokens) <= token_id:
            vocabulary.tokens.append(f"[PAD{len(vocabulary.tokens)}]")
            vocabulary.types.append(TokenType.UNUSED)
            if vocabulary.scores is not None:
                vocabulary.scores.append(_ADDED_SCORE)
        if vocabulary.types[token_id] in (TokenType.UNKNOWN, TokenType.BYTE):
            continue
        if special or _looks_special(text):
            vocabulary.types[token_id] = TokenType.CONTROL
        else:
            vocabulary.types[token_id] = TokenType.USER_DEFINED
            text = text.replace(SPACE, " ") if vocabulary.model == "llama" else text
        vocabulary.tokens[token_id] = text


def _looks_special(text: str) -> bool:
    return (text.startswith("<|") and text.endswith("|>")) or text in ("<pad>", "<mask>")


def _note_special(vocabulary: Vocabulary, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    for key, name in _SPECIAL.items():
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text in ids:
            vocabulary.special[name] = ids[text]
    fallback: dict[str, int | None] = {}
    for key in ("bos", "eos", "pad"):
        value = config.get(f"{key}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        fallback["padding" if key == "pad" else key] = value if type(value) is int else None
    add_special(vocabulary, fallback)


def _set_flags(vocabulary: Vocabulary, tokenizer: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    first, last = _template_ends(tokenizer) if tokenizer else (None, None)
    if tokenizer:
        vocabulary.add_bos = first is not None and _is(vocabulary, first, "bos")
        vocabulary.add_eos = last is not None and _is(vocabulary, last, "eos")
    for key, name in (("add_bos_token", "add_bos"), ("add_eos_token", "add_eos")):
        if isinstance(settings.get(key), bool):
            setattr(vocabulary, name, settings[key])
    if vocabulary.model == "llama" and tokenizer:
        vocabulary.add_space_prefix = _prepends_space(tokenizer)
    if isinstance(settings.get("add_prefix_space"), bool) and vocabulary.model == "llama":
        vocabulary.add_space_prefix = settings["add_prefix_space"]


def _is(vocabulary: Vocabulary, text: str, name: str) -> bool:
    token_id = vocabulary.special.get(name)
    return token_id is not None and vocabulary.tokens[token_id] == text


def _template_ends(tokenizer: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens with which the post-processor begins and ends a single text."""
    post = tokenizer.get("post_processor")
    steps = post.get("processors", [post]) if isinstance(post, dict) else []
    for step in steps if isinstance(steps, list) else []:
        single = step.get("single") if isinstance(step, dict) else None
        if isinstance(single, list) and single:
            return _special_id(single[0]), _special_id(single[-1])
    return None, None


def _special_id(item: Any) -> str | None:
    special = item.get("SpecialToken") if isinstance(item, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the normalizer, or a Metaspace pre-tokenizer, puts a space before the text."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    if any(isinstance(step, dict) and step.get("type") == "Prepend" for step in steps):
        return True
    if not isinstance(pre, dict) or pre.get("type") != "Metaspace":
        return False
    scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
    return bool(scheme != "never")


def _suppressed(path: Path, count: int) -> list[int]:
    """`suppress_tokens` of a generation_config.json (Gemma 4: images and sounds), without ids that no token has."""
    given = _optional_json(path).get("suppress_tokens")
    if given is None:
        return []
    if not isinstance(given, list) or any(type(token_id) is not int for token_id in given):
        raise FormatError(f"{path}: suppress_tokens is not a list of ids of tokens")
    return sorted({token_id for token_id in given if 0 <= token_id < count})


def _templates(root: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    path = root / "chat_template.jinja"
    if path.is_file():
        return {"": path.read_text("utf-8", errors="replace")}
    value = settings.get("chat_template") or _optional_json(root / "chat_template.json").get("chat_template")
    if isinstance(value, str):
        return {"": value}
    templates = {}
    for entry in value if isinstance(value, list) else []:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and isinstance(text, str) and name.isidentifier():
            templates["" if name == "default" else name] = text
    return templates
