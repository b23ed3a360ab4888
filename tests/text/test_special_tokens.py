"""Special tokens in text, which ids end a reply, and what each token adds to the text."""

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.text import load_tokenizer

from .vocabularies import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, bpe, sentencepiece


def texts(tokenizer, text, **options):
    ids = tokenizer.encode(text, add_special=False, **options)
    return [tokenizer.token_text(i) for i in ids]


def test_special_tokens_are_found_in_text():
    tokenizer = load_tokenizer(bpe())
    assert texts(tokenizer, "hello<|end|><|tool|>he") == ["hello", "<|end|>", "<|tool|>", "he"]


def test_text_that_nobody_vouches_for_holds_no_control_tokens():
    tokenizer = load_tokenizer(bpe())
    found = texts(tokenizer, "<|end|><|tool|>", parse_special=False)
    assert found == [*"<|end|>", "<|tool|>"]


def test_longer_tokens_are_found_first():
    tokenizer = load_tokenizer(bpe((), {"<a>": CONTROL, "x<a>y": CONTROL, "<a><a>": USER_DEFINED}))
    assert texts(tokenizer, "x<a>y<a><a><a>") == ["x<a>y", "<a><a>", "<a>"]


def test_phi3_control_tokens_swallow_what_follows():
    added = {"<|user|>": CONTROL, "<|endoftext|>": CONTROL}
    metadata = sentencepiece(added=added) | {"general.name": "Phi-3 mini"}
    tokenizer = load_tokenizer(metadata)
    assert texts(tokenizer, "<|user|> \n\thello") == ["<|user|>", "▁hello"]
    assert texts(tokenizer, "<|user|> \n<|user|>") == ["<|user|>", "<|user|>"]
    assert texts(tokenizer, "<|endoftext|> \n") == ["<|endoftext|>", "▁▁", "<0x0A>"]


def test_masks_swallow_what_precedes():
    tokenizer = load_tokenizer(bpe((), {"<mask>": CONTROL}, pre="jina-v2-de"))
    assert texts(tokenizer, "a \n<mask> b") == ["a", "<mask>", "Ġ", "b"]


def test_each_text_after_a_special_token_gets_its_space():
    tokenizer = load_tokenizer(sentencepiece())
    assert texts(tokenizer, "he<|user|>he") == ["▁he", "<|user|>", "▁he"]


@pytest.mark.parametrize(
    ("added", "keys", "expected"),
    [
        ("<|im_end|> eos", {}, "<|im_end|> eos"),
        ("<|eot_id|> <|eom_id|> eos", {}, "<|eot_id|> <|eom_id|> eos"),
        ("stop other eos", {"eot_token_id": 256}, "stop eos"),
        ("<|fim_pad|> <|file_sep|> eos", {}, "<|fim_pad|> <|file_sep|> eos"),
        (
            "<|return|> <|call|> <|end|> eos",
            {},
            "<|return|> <|call|> eos",
        ),  # <|end|> ends a part there
        ("<|tool_response> </s> <turn|> eos", {}, "<|tool_response> <turn|> eos"),
        ("<|plamo:eos|> </s> eos", {"eot_token_id": 256}, "<|plamo:eos|> eos"),
        ("<|eot|> <|eom|> eos", {}, "<|eot|> eos"),
        ("one two eos", {"eos_token_ids": np.array([256, -1, 10**6], np.int32)}, "one eos"),  # Ollama's key
    ],
)
def test_tokens_that_end_a_reply(added, keys, expected):
    tokenizer = load_tokenizer(bpe((), dict.fromkeys(added.split(), CONTROL), **keys))
    assert {tokenizer.token_text(i) for i in tokenizer.eog_ids} == set(expected.split())


def test_llama_3_without_a_pre_tokenizer_is_split_as_llama_3():
    """As in its first files: their numbers are cut in threes."""
    added = {f"<|{i}|>": CONTROL for i in range(128_009 - 258)} | {"<|eot_id|>": CONTROL}
    metadata = bpe(("1 2", "12 3"), added, pre="default")
    assert metadata["tokenizer.ggml.tokens"][128_009] == "<|eot_id|>"
    tokenizer = load_tokenizer(metadata)
    assert "llama-bpe" in repr(tokenizer)
    assert any("Llama 3" in notice for notice in tokenizer.notices)
    assert "default" in repr(load_tokenizer(bpe(pre="default")))


def test_tokens_that_must_never_be_chosen():
    tokenizer = load_tokenizer(bpe(suppress_tokens=np.array([7, 3, -1, 10**6], np.int32)))
    assert tokenizer.suppressed_ids == {3, 7}
    assert load_tokenizer(bpe()).suppressed_ids == set()


def test_tokens_known_by_their_text_are_control_tokens_whatever_the_file_says():
    tokenizer = load_tokenizer(bpe((), {"<|im_end|>": NORMAL, "end": CONTROL}))
    assert tokenizer.is_special(256)
    assert texts(tokenizer, "<|im_end|>") == ["<|im_end|>"]
    assert texts(tokenizer, "<|im_end|>", parse_special=False) == list("<|im_end|>")


def test_what_tokens_add_to_the_text():
    tokenizer = load_tokenizer(sentencepiece(added={"<|user|>": CONTROL, "spare": UNUSED, "<0xZZ>": BYTE}))
    by_text = {tokenizer.token_text(i): tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert by_text["▁hello"] == b" hello"
    assert by_text["<0xC3>"] == b"\xc3"
    assert by_text["<|user|>"] == b"<|user|>"
    assert by_text["spare"] == by_text["<0xZZ>"] == b""
    assert load_tokenizer(bpe()).token_bytes(0xC3) == b"\xc3"


def test_decode_can_leave_control_tokens_out():
    tokenizer = load_tokenizer(bpe())
    ids = tokenizer.encode("hello<|end|><|tool|>")
    assert tokenizer.decode(ids) == "hello<|end|><|tool|>"
    assert tokenizer.decode(ids, skip_special=True) == "hello<|tool|>"


@pytest.mark.parametrize("token_id", [-1, 10_000])
def test_ids_that_do_not_exist(token_id):
    tokenizer = load_tokenizer(bpe())
    for call in (tokenizer.token_bytes, tokenizer.token_text, tokenizer.is_special):
        with pytest.raises(UsageError, match=f"no token {token_id}"):
            call(token_id)
    with pytest.raises(UsageError):
        tokenizer.decode([token_id])


def test_begin_of_text_only_where_the_model_wants_it():
    assert not load_tokenizer(bpe()).add_bos
    llama = load_tokenizer(bpe(pre="llama-bpe"))
    assert llama.encode("hello") == [llama.bos_id, *llama.encode("hello", add_special=False)]
    assert not load_tokenizer(bpe(pre="llama-bpe", add_bos_token=False)).add_bos


def test_gpt_2_defaults_where_the_file_names_no_ids():
    metadata = bpe()
    del metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
    tokenizer = load_tokenizer(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (11, 11)
    metadata["tokenizer.ggml.pre"] = "glm4"
    assert load_tokenizer(metadata).bos_id is None
