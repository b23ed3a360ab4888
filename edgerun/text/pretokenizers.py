"""How each family of BPE tokenizers cuts text into words before merging, by its `tokenizer.ggml.pre` name.

The patterns are those of the models' own tokenizer files, in the form that llama.cpp applies: one after the
other, each within the pieces that the one before left; what a pattern does not match stays as a piece.
"""

from __future__ import annotations

from edgerun.errors import UnsupportedError
from edgerun.text.characters import (
    HAN,
    PUNCTUATION,
    UNASSIGNED_HAN,
    L,
    M,
    N,
    P,
    S,
    collapse_han,
    plain_spaces,
)
from edgerun.text.splitting import PreTokenizer, Rule, cut_thousands, cut_threes

_SUFFIXES = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"  # 's 't 're 've 'm 'll 'd in any case
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = rf"[^\r\n{L}{N}]?[{L}]+"
_SYMBOLS = rf" ?[^\s{L}{N}]+[\r\n]*"

_GPT2 = Rule(rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)")
_DIGIT = Rule(rf"[{N}]")
_DIGITS = Rule(rf"[{N}]+")
_THREE_DIGITS = Rule("[0-9][0-9][0-9]", plain_spaces)
_THOUSANDS = Rule(r"[0-9]+", plain_spaces, cut_thousands)
_NEWLINE = Rule(r"[\r\n]", plain_spaces)
_LINE = Rule(r"[^\n]+|[\n]+", plain_spaces)
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
_UP_TO_THREE = Rule(rf"[{N}]{{1,3}}")
_DEEPSEEK3_CJK = Rule("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", plain_spaces)
_DEEPSEEK3_TEXT = Rule(rf"{_DEEPSEEK3_WORDS}| ?[{P}{S}]+[\r\n]*|{_LINES}")
_DEEPSEEK3 = (_UP_TO_THREE, _DEEPSEEK3_CJK, _DEEPSEEK3_TEXT)
_SPARK = (
    _UP_TO_THREE,
    _DEEPSEEK3_CJK,
    Rule(rf"{_DEEPSEEK3_WORDS}| ?[{P}{S}]+|[\r\n]|\s+(?!\S)|\s+"),
    _DIGIT,
)
_DIGITS_BY_THREE = Rule(rf"[{N}]+", cut=cut_threes)
_AFMOE = (
    _DIGITS_BY_THREE,
    Rule(
        "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
        "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
        "\u1100-\u11ff]+",
        plain_spaces,
    ),
    _DEEPSEEK3_TEXT,
)
_KIMI_LETTERS = rf"[^\r\n{L}{N}]?[{L}]+{_ANY_SUFFIX}"
_KIMI = Rule(
    rf"[{HAN}{UNASSIGNED_HAN}]+|{_KIMI_LETTERS}|[{N}]{{1,3}}| ?[^\s{L}{N}{HAN}]+[\r\n]*|{_LINES}",
    collapse_han,
)
_CJK = Rule("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", plain_spaces)
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
    Rule(rf"\s?[{_DEEPSEEK_LETTERS}]+", plain_spaces),
    Rule("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", plain_spaces),
    Rule(r"\s+\Z", plain_spaces),
    _CJK,
    _DIGITS,
)
_DEEPSEEK_CODER = (_NEWLINE, Rule(rf"\s?[{L}]+"), Rule(rf"\s?[{P}]+"), _CJK, _DIGIT)
_FALCON = (Rule(rf"[{P}$+<=>^~|`]+"), _GPT2, _THREE_DIGITS)
_DEFAULT = (Rule(rf"[{P}$+<=>^~|]+"), _GPT2, _DIGITS, _THREE_DIGITS)
_PORO = Rule(" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", plain_spaces)
_YOUTU = (
    Rule(
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        "\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        plain_spaces,
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
    _UP_TO_THREE,
    Rule(rf"(?:{_SUFFIXES})|{_WORD}|[{N}]+|{_SYMBOLS}|{_LINES}"),
)
_TINY_AYA = (_DIGITS_BY_THREE, Rule(_cased(L + M, L + M, _ANY_SUFFIX, "{1,3}")))
_GRANITE_MULTI = Rule(_cased(_UPPER + M, _LOWER + M, _ANY_SUFFIX, "{1,3}"))
_UFAKZEKA = Rule(rf"{_WORD}|[{N}]|{_SYMBOLS}|{_LINES}")  # Turkish suffixes after an apostrophe stay with it
_CHAMELEON = (
    Rule("<sentinel:[0-9]+>", plain_spaces),
    Rule("IMGIMG[A-I]{1,4}Z", plain_spaces),
    Rule("[\\t\\n]|    |  ", plain_spaces),
    _DIGIT,
    Rule(rf"[!-/:-@\[-`{{-~{PUNCTUATION}]"),
    _GPT2,
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
    **_family("chatglm-bpe", _LLAMA3, no_default_bos=True),
    **_family("glm4 glm5", _LLAMA3, no_default_bos=True, ignore_merges=True),
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
    **_family("gemma4 granite-embed-multi-311m", _LINE, byte_level=False, whole_lines=True, always_bos=True),
    **_family("sarvam-moe", _LINE, byte_level=False),
    **_family("spark2_5", *_SPARK),
    **_family("afmoe", *_AFMOE),
    **_family("kimi-k2", _KIMI),
    **_family("tiny_aya cohere2moe", *_TINY_AYA),
    **_family("granite-embed-multi-97m", _GRANITE_MULTI, ignore_merges=True),
    **_family("ufakzeka", _UFAKZEKA),
    **_family("chameleon", *_CHAMELEON, add_bos=True),
}


def find_pretokenizer(name: str) -> PreTokenizer:
    """The family called `name`, "" meaning default. Raises UnsupportedError, naming those that there are."""
    found = PRETOKENIZERS.get(name or "default")
    if found is None:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise UnsupportedError(f"the pre-tokenizer {name!r} is not one that edgerun runs: {known}")
    return found
