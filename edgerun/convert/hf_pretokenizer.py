"""Which of GGUF's named pre-tokenizers a tokenizer.json splits text with.

GGUF stores a name ("llama-bpe"), tokenizer.json the regular expressions; the name follows from those and,
where several names share one expression, from the family. Source: llama.cpp, llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgerun.errors import UnsupportedError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_OPTIONAL_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_BY_PATTERN: dict[str, str] = {
    _words(r"\p{N}{1,3}"): "llama-bpe",
    _words(r"\p{N}"): "qwen2",
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
        rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
    ): "qwen35",
    rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}": "tekken",
    (
        rf"{_CASED[0]}{_OPTIONAL_CONTRACTION}|{_CASED[1]}{_OPTIONAL_CONTRACTION}|\p{{N}}{{1,3}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ): "gpt-4o",
    _GPT2: "gpt-2",
}
_FAMILY_NAMES = {"olmoe": "olmo"}  # the same expression under a name of its own


def pretokenizer_name(pre: Any, architecture: str, where: str) -> str:
    """GGUF's name for the `pre_tokenizer` object of a tokenizer.json. UnsupportedError when none splits
    alike."""
    steps = list(_steps(pre))
    kinds = [str(step.get("type")) for step in steps]
    patterns = [text for step in steps if (text := _pattern(step)) is not None]
    byte_level = next((step for step in steps if step.get("type") == "ByteLevel"), None)
    splits_itself = byte_level is not None and byte_level.get("use_regex", True)
    digits = next((step for step in steps if step.get("type") == "Digits"), None)
    if kinds == ["ByteLevel"] and splits_itself:
        return _FAMILY_NAMES.get(architecture, "gpt-2")
    if kinds == ["Digits", "ByteLevel"] and splits_itself and digits and digits.get("individual_digits"):
        return "smollm"
    if kinds[:1] == ["Punctuation"] and splits_itself and digits is not None:
        return "falcon"
    if patterns and not splits_itself:
        if len(patterns) == 1 and patterns[0] in _BY_PATTERN:
            return _BY_PATTERN[patterns[0]]
        if patterns[:2] == [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"] and r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+" in patterns[-1]:
            return "deepseek-v3"
        if patterns[0] == r"[\r\n]" and digits is not None:
            return "deepseek-coder" if any(r"\p{L}" in text for text in patterns[1:3]) else "deepseek-llm"
    shown = " | ".join(patterns) or ", ".join(kinds) or "none"
    raise UnsupportedError(
        f"{where}: GGUF has no name for this pre-tokenizer ({shown[:300]}); edgerun knows those of "
        f"{', '.join([*dict.fromkeys(_BY_PATTERN.values()), 'smollm', 'olmo', 'falcon', 'deepseek-llm'])}"
    )


def _steps(pre: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(pre, dict):
        return
    inner = pre.get("pretokenizers")
    if pre.get("type") == "Sequence" and isinstance(inner, list):
        yield from (step for step in inner if isinstance(step, dict))
    else:
        yield pre


def _pattern(step: dict[str, Any]) -> str | None:
    pattern = step.get("pattern")
    text = pattern.get("Regex", pattern.get("String")) if isinstance(pattern, dict) else None
    return text if step.get("type") == "Split" and isinstance(text, str) else None
