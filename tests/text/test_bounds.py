"""What text and vocabularies cost: memory, time, and when they are refused or stopped."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from edgerun.errors import Cancelled, ContextLengthError
from edgerun.formats.gguf import open_gguf
from edgerun.formats.gguf.types import ValueKind
from edgerun.formats.gguf.writer import GgufWriter
from edgerun.text import load_tokenizer, text_bytes
from edgerun.text.vocabulary import vocabulary_bytes

from .vocabularies import CONTROL, NORMAL, bpe, sentencepiece

CHAINS = {"▁" * 2: -1.0, "aa": -2.0, "aaaa": -3.0, "ab": -4.0, "abab": -5.0, "a": -9.0, "b": -9.0, "▁": -9.0}
KINDS = {
    "SentencePiece": sentencepiece(CHAINS),
    "BPE": bpe(["a a", "aa aa", "a b", "ab ab", "Ġ Ġ"]),
    "gemma4": bpe(["a a", "aa aa", "a b"]) | {"tokenizer.ggml.model": "gemma4"},
}
PIECES = {"one letter": "a", "two": "ab", "no pairs": "x", "spaces": " ", "lines": "\n", "beyond ASCII": "é"}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("metadata", KINDS.values(), ids=KINDS)
def test_a_word_takes_bounded_memory_whatever_its_length(metadata, piece):
    tokenizer = load_tokenizer(metadata)
    tokenizer.encode(piece * 1000)
    text = piece * (12_000 // len(piece))
    tracemalloc.start()
    ids = tokenizer.encode(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * len(text.encode()) + 16 * len(ids) + (1 << 20)


def test_no_run_of_characters_takes_a_pretokenizer_quadratic_time_or_much_memory():
    """The time is a limit, not a measurement: the slowest takes 1 s on a slow processor, a quadratic one minutes."""
    program = """if True:
        import resource, signal
        from edgerun.text.pretokenizers import PRETOKENIZERS
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20),) * 2)
        families = {each.rules: each for each in PRETOKENIZERS.values()}
        for family in families.values():
            for run in "a1 \\n.é":
                text = run * 250_000 + "x"
                print(family.name, repr(run), flush=True)
                signal.setitimer(signal.ITIMER_PROF, 3)  # kills
                assert sum(map(len, family.split(text))) == len(text)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout.splitlines()[-1:], done.stderr[-500:])


@pytest.mark.parametrize("metadata", KINDS.values(), ids=KINDS)
def test_refused_as_soon_as_it_is_certain(metadata):
    tokenizer = load_tokenizer(metadata)
    text = "ab " * 1000
    ids = tokenizer.encode(text)
    assert tokenizer.encode(text, limit=len(ids)) == ids
    for limit in (len(ids) - 1, 100, 1, 0):
        with pytest.raises(ContextLengthError, match=rf"at least \d+ tokens, the context {limit};") as caught:
            tokenizer.encode(text, limit=limit)
        assert limit < int(str(caught.value).split()[5]) <= len(ids)


@pytest.mark.parametrize("metadata", [KINDS["SentencePiece"], KINDS["BPE"]], ids=["SentencePiece", "BPE"])
def test_a_text_longer_than_so_many_of_the_longest_token_is_not_even_cut(metadata, monkeypatch):
    tokenizer = load_tokenizer(metadata)
    longest = max(map(len, metadata["tokenizer.ggml.tokens"]))
    monkeypatch.setattr(tokenizer, "_partition", None)
    for text in ("a" * (10 * longest + 1), "é" * (10 * longest + 1)):
        with pytest.raises(ContextLengthError, match="at least 11 tokens, the context 10"):
            tokenizer.encode(text, limit=10)
    with pytest.raises(TypeError):  # a shorter one is cut
        tokenizer.encode("a" * 10 * longest, limit=10)


def test_characters_that_become_no_token_are_not_counted():
    metadata = bpe()
    metadata["tokenizer.ggml.tokens"][ord("x")] = "no x"
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.encode("x" * 10_000, limit=1, add_special=False) == []
    assert len(tokenizer.encode("x" * 10_000 + "ab", limit=2, add_special=False)) == 2


def test_merges_that_make_no_token_leave_out_letters_beyond_ascii():
    metadata = bpe()
    metadata["tokenizer.ggml.merges"].insert(0, "Ã ©")
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.encode("é" * 10_000, limit=1, add_special=False) == []


def test_space_that_a_special_token_swallows_is_not_counted():
    metadata = sentencepiece(CHAINS, {"<|end|>": CONTROL}) | {"general.name": "Phi-3 mini"}
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode("<|end|>" + " " * 10_000, limit=2)
    assert ids == tokenizer.encode("<|end|>")


@pytest.mark.parametrize("text", ["a" * 100_000, "ab " * 20_000, "x" * 100_000, "\n" * 100_000])
@pytest.mark.parametrize("metadata", KINDS.values(), ids=KINDS)
def test_cancelled_while_it_works(metadata, text):
    tokenizer = load_tokenizer(metadata)
    looks = []

    def cancelled():
        looks.append(1)
        return len(looks) == 3

    with pytest.raises(Cancelled):
        tokenizer.encode(text, cancelled=cancelled)
    assert len(looks) == 3
    assert tokenizer.encode("ab")


VOCABULARIES = {
    "sparse": ([""] * 8000, []),
    "short": ([chr(0x4E00 + i) for i in range(8000)], []),
    "long": (["x" * 200 + str(i) for i in range(1000)], []),
    "wide": (["x" * 60 + "\U0001f600" + str(i) for i in range(1500)], []),
    "at the worst size of a dictionary": ([f"{i:05d}" for i in range(10_923 - 261)], []),
    "merges": ([f"{i:05d}" for i in range(5000)], [f"{i:05d} x" for i in range(5000)]),
}


@pytest.mark.parametrize("tokens, merges", VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_vocabulary_takes_what_its_header_tells(tokens, merges, tmp_path):
    path = tmp_path / "vocabulary.gguf"
    write_vocabulary(path, tokens, merges)
    load_tokenizer(bpe())  # what is made once for all
    with open_gguf(path) as gguf:
        allowed = vocabulary_bytes(gguf.metadata)
        tracemalloc.start()
        tokenizer = load_tokenizer(gguf)
        _, loaded = tracemalloc.get_traced_memory()
        for token_id in range(tokenizer.vocab_size):
            tokenizer.token_bytes(token_id)
        tokenizer.encode("hello 12345 x")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        in_file = gguf.metadata.strings_bytes("tokenizer.ggml.tokens") + gguf.metadata.strings_bytes(
            "tokenizer.ggml.merges"
        )
        assert loaded <= allowed.loaded <= 40 * in_file
        assert peak <= allowed.loaded + allowed.later
        assert text_bytes(gguf.metadata) == max(0, allowed.later - (40 << 20))


def write_vocabulary(path, tokens, merges):
    base = bpe()
    with GgufWriter(path, "llama") as writer:
        add_vocabulary(writer, base, tokens, merges)


def add_vocabulary(writer, base, tokens, merges):
    writer.add("tokenizer.ggml.model", "gpt2")
    writer.add("tokenizer.ggml.pre", "gpt-2")
    all_tokens = [*base["tokenizer.ggml.tokens"], *tokens]
    writer.add("tokenizer.ggml.tokens", all_tokens, ValueKind.STRING)
    writer.add("tokenizer.ggml.token_type", np.full(len(all_tokens), NORMAL, np.int32))
    writer.add("tokenizer.ggml.merges", [*base["tokenizer.ggml.merges"], *merges], ValueKind.STRING)
