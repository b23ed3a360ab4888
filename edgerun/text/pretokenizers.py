"""How each family of BPE tokenizers cuts text into words before merging, by its `tokenizer.ggml.pre` name.

The patterns are those of the models' own tokenizer files, in the form that llama.cpp applies: one after the
other, each within the pieces that the one before left; what a pattern does not match stays as a piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from edgerun.errors import UnsupportedError
from edgerun.text.characters import L, M, N, P, S, collapse, compile_ascii, plain_spaces


@dataclass(frozen=True, slots=True)
class Rule:
    """One pass: a pattern, over collapsed text (see `characters`) or over the text itself.

    `thousands`: what it matches is cut before each group of three, counted from its end, and nowhere else; as the
    pattern (?=(\\d{3})+(?!\\d)) would, which takes quadratic time.
    """

    pattern: str
    collapsed: bool = True
    thousands: bool = False


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A family's passes and its habits."""

    name: str
    rules: tuple[Rule, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges say
    add_bos: bool = False  # unless the file says otherwise
    no_default_bos: bool = False
    byte_level: bool = True  # False: over characters, ▁ for spaces, <0xXX> for unknown ones

    def split(self, text: str) -> Iterator[str]:
        """The words of `text`, one at a time; joined they are the text."""
        ends: Iterable[int] = (len(text),)
        collapsed: str | None = None
        plain: str | None = None
        for rule in self.rules:
            if rule.collapsed:
                source = collapsed = collapse(text) if collapsed is None else collapsed
            else:
                source = plain = plain_spaces(text) if plain is None else plain
            ends = (_cut_thousands if rule.thousands else _cut)(_compiled(rule.pattern), source, ends)
        start = 0
        for end in ends:
            yield text[start:end]
            start = end


_compiled = cache(compile_ascii)


def _cut(pattern: re.Pattern[str], text: str, ends: Iterable[int]) -> Iterator[int]:
    """Cut the pieces that end at `ends` around each match of `pattern` within them."""
    start = 0
    for end in ends:
        at = start
        for match in pattern.finditer(text, start, end):
            first, last = match.span()
            if first > at:
                yield first
            if last > first:
                yield last
            at = last
        if at < end:
            yield end
        start = end


def _cut_thousands(pattern: re.Pattern[str], text: str, ends: Iterable[int]) -> Iterator[int]:
    """Cut each match of `pattern` before every third character from its end."""
    start = 0
    for end in ends:
        for match in pattern.finditer(text, start, end):
            first, last = match.span()
            yield from (at for at in range(last - (last - first) // 3 * 3, last, 3) if at > start)
        yield end
        start = end


_SUFFIXES = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"  # 's 't 're 've 'm 'll 'd in any case
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = rf"[^\r\n{L}{N}]?[{L}]+"
_SYMBOLS = rf" ?[^\s{L}{N}]+[\r\n]*"

_GPT2 = Rule(rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)")
_DIGIT = Rule(rf"[{N}]")
_DIGITS = Rule(rf"[{N}]+")
_THREE_DIGITS = Rule("[0-9][0-9][0-9]", collapsed=False)
_THOUSANDS = Rule(r"[0-9]+", collapsed=False, thousands=True)
_NEWLINE = Rule(r"[\r\n]", collapsed=False)
_LINE = Rule(r"[^\n]+|[\n]+", collapsed=False)
_LLAMA3 = Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]{{1,3}}|{_SYMBOLS}|{_LINES}")
_QWEN2 = Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]|{_SYMBOLS}|{_LINES}")

# Upper before lower case: categories cannot be told apart in collapsed text, so the only upper (lower) case
# letters that a lower (upper) case class refuses are A-Z (a-z).
_UPPER = L.replace("a-z", "")
_LOWER = L.replace("A-Z", "")


def _cased(upper: str, lower: str, suffix: str, digits: str) -> str:
    lead = rf"[^\r\n{L}{N}]?"
    return (
        rf"{lead}[{upper}]*[{lower}]+{suffix}|{lead}[{upper}]+[{lower}]*{suffix}"
        rf"|[{N}]{digits}| ?[^\s{L}{N}]+[\r\n/]*|{_LINES}"
    )


_ANY_SUFFIX = f"(?:{_SUFFIXES})?"
_TEKKEN = Rule(_cased(_UPPER, _LOWER, "", ""))
_GPT4O = Rule(_cased(_UPPER, _LOWER, _ANY_SUFFIX, "{1,3}"))

_ASCII_SYMBOLS = r"""!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~"""
_DEEPSEEK3_WORDS = rf"[{_ASCII_SYMBOLS}][A-Za-z]+|[^\r\n{L}{P}{S}]?[{L}{M}]+"
_DEEPSEEK3 = (
    Rule(rf"[{N}]{{1,3}}"),
    Rule("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", collapsed=False),
    Rule(rf"{_DEEPSEEK3_WORDS}| ?[{P}{S}]+[\r\n]*|{_LINES}"),
)
_CJK = Rule("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", collapsed=False)
_DEEPSEEK_LETTERS = (  # cased letters, as the model's tokenizer file lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    _NEWLINE,
    Rule(rf"\s?[{_DEEPSEEK_LETTERS}]+", collapsed=False),
    Rule("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", collapsed=False),
    Rule(r"\s+\Z", collapsed=False),
    _CJK,
    _DIGITS,
)
_DEEPSEEK_CODER = (_NEWLINE, Rule(rf"\s?[{L}]+"), Rule(rf"\s?[{P}]+"), _CJK, _DIGIT)
_FALCON = (Rule(rf"[{P}$+<=>^~|`]+"), _GPT2, _THREE_DIGITS)
_DEFAULT = (Rule(rf"[{P}$+<=>^~|]+"), _GPT2, _DIGITS, _THREE_DIGITS)
_PORO = Rule(" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", collapsed=False)
_YOUTU = (
    Rule(
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        collapsed=False,
    ),
    Rule(_cased(L + M, L + M, _ANY_SUFFIX, "")),
)
_SEED = Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]| ?[^\s{L}{N}\r\n]+|{_LINES}")
_BAILING = Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+")
_QWEN35 = Rule(
    rf"(?:{_SUFFIXES})|[^\r\n{L}{N}]?[{L}{M}]+|[{N}]| ?[^\s{L}{M}{N}]+[\r\n]*|{_LINES}",
)
_EXAONE_MOE = Rule(
    rf"(?:{_SUFFIXES})|[^\r\n{L}{N}]?[{L}][{L}{M}]*+(?: [{L}][{L}{M}]*+)*+|[{N}]| ?[^\s{L}{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = (
    Rule(rf"[{N}]{{1,3}}"),
    Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]+|{_SYMBOLS}|{_LINES}"),
)
_JAIS2 = Rule(
    # The look behind changes no match: past a first piece of a run of spaces there are no line breaks in it. Without
    # it the rest of the run would be searched for them after every piece, which takes quadratic time.
    rf"(?:{_SUFFIXES})|{_WORD}|[{N}]{{1,3}}|{_SYMBOLS}|(?<![^\S\r\n])\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)


def _family(names: str, *rules: Rule, **habits: bool) -> dict[str, PreTokenizer]:
    return {name: PreTokenizer(name, rules, **habits) for name in names.split()}


PRETOKENIZERS: dict[str, PreTokenizer] = {
    **_family("default", *_DEFAULT),
    **_family(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        ignore_merges=True,
        add_bos=True,
    ),
    **_family("dbrx smaug-bpe", _LLAMA3),
    **_family("glm4 chatglm-bpe", _LLAMA3, no_default_bos=True),
    **_family(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais "
        "exaone4 trillion granite-docling jina-v1-en jina-v2-code roberta-bpe",
        _GPT2,
    ),
    **_family(
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        _DIGIT,
        _GPT2,
    ),
    **_family(
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        _QWEN2,
    ),
    **_family("qwen35", _QWEN35),
    **_family("laguna", _LINE, _QWEN2),
    **_family("deepseek-llm", *_DEEPSEEK_LLM),
    **_family("deepseek-coder", *_DEEPSEEK_CODER),
    **_family("deepseek-v3 hunyuan-dense joyai-llm hy_v4", *_DEEPSEEK3),
    **_family("falcon", *_FALCON),
    **_family("tekken", _TEKKEN, ignore_merges=True, add_bos=True),
    **_family("gpt-4o llama4 kanana2 talkie minimax-m2", _GPT4O),
    **_family("poro-chat bloom gpt3-finnish", _PORO),
    **_family("viking", _PORO, _DIGIT),
    **_family("superbpe", _DIGITS, _THOUSANDS),
    **_family("bailingmoe bailingmoe2 llada-moe", _BAILING),
    **_family("seed-coder", _SEED),
    **_family("exaone-moe", _EXAONE_MOE),
    **_family("minicpm5", *_MINICPM5, ignore_merges=True),
    **_family("youtu", *_YOUTU, ignore_merges=True),
    **_family("jais-2", _JAIS2),
    **_family("gemma4 sarvam-moe", _LINE, byte_level=False),
}


def find_pretokenizer(name: str) -> PreTokenizer:
    """The family called `name`, "" meaning default. Raises UnsupportedError, naming those that there are."""
    found = PRETOKENIZERS.get(name or "default")
    if found is None:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise UnsupportedError(f"the pre-tokenizer {name!r} is not one that edgerun runs: {known}")
    return found
