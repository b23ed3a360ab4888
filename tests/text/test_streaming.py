"""Text as tokens arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.text import StreamDecoder, load_tokenizer

from .vocabularies import bpe, sentencepiece

TOKENIZERS = {"bpe": load_tokenizer(bpe()), "spm": load_tokenizer(sentencepiece())}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)


@KINDS
def test_no_half_characters(kind):
    tokenizer = TOKENIZERS[kind]
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("é😀x", add_special=False)
    pieces = [decoder.push(i) for i in ids]
    assert [piece for piece in pieces if piece] == ["é", "😀", "x"]
    assert decoder.flush() == ""


@KINDS
def test_a_character_that_never_ends_comes_out_at_the_end(kind):
    tokenizer = TOKENIZERS[kind]
    decoder = StreamDecoder(tokenizer)
    *_, lead, _second, _third, _fourth = tokenizer.encode("😀", add_special=False)
    assert decoder.push(lead) == ""
    assert decoder.flush() == "\ufffd"


@KINDS
def test_bytes_that_cannot_become_a_character_come_out_when_that_is_known(kind):
    tokenizer = TOKENIZERS[kind]
    *_, lead, _second, _third, _fourth = tokenizer.encode("😀", add_special=False)
    letter = tokenizer.encode("h", add_special=False)[-1]
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(lead) + decoder.push(letter) in ("\ufffdh", "\ufffd h")


@KINDS
@given(data=st.data())
def test_the_pieces_joined_are_the_decoded_text(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    skip = data.draw(st.booleans())
    decoder = StreamDecoder(tokenizer, skip_special=skip)
    pieces = [decoder.push(i) for i in ids] + [decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)


@KINDS
@given(text=st.text("heé😀 \n", min_size=1, max_size=20))
def test_after_a_prompt_the_pieces_go_on_where_it_ended(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids, skip_special=True)
    for cut in range(len(ids) + 1):
        prompt, reply = ids[:cut], ids[cut:]
        decoder = StreamDecoder(tokenizer, prompt=prompt, skip_special=True)
        said = "".join([decoder.push(i) for i in reply] + [decoder.flush()])
        before = tokenizer.decode(prompt, skip_special=True)
        if "\ufffd" not in before:  # the prompt ends within no character
            assert before + said == whole


def test_a_reply_keeps_the_space_that_parts_it_from_the_prompt():
    tokenizer = TOKENIZERS["spm"]
    ids = tokenizer.encode("hello world")
    assert StreamDecoder(tokenizer, prompt=ids[:-1]).push(ids[-1]) == " world"
    assert StreamDecoder(tokenizer, prompt=ids[:1]).push(ids[-1]) == "world"
    assert StreamDecoder(tokenizer).push(ids[-1]) == "world"
