"""Eight threads and one true model: every answer is that of one alone, and no page is left behind."""

from __future__ import annotations

import pytest

from edgerun.api import LLM
from edgerun.engine import Engine
from edgerun.formats.gguf import open_gguf
from edgerun.kv import KvLedger
from edgerun.models import Decoder, load_spec
from edgerun.models.holdings import kv_groups
from edgerun.text import load_chat_template, load_tokenizer
from edgerun.weights import ResidentStore
from edgerun.weights.identity import identify
from tests.tiny_model import make_tiny_model
from tools.stress import Stress, ask_alone

CONTEXT = 1024


@pytest.mark.parametrize("contexts", [None, 2], ids=["with room", "with hardly any room"])
def test_eight_threads_do_everything(tmp_path, kernels, contexts):
    """Without room nobody is refused for good: whoever gives way goes on when others have ended. Sessions would be, for
    they keep what they hold."""
    with open_gguf(make_tiny_model(tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        tokenizer = load_tokenizer(gguf.metadata)
        page_bytes = sum(group.page_bytes for group in kv_groups(spec))
        ledger = KvLedger(None if contexts is None else contexts * page_bytes * CONTEXT // 256)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=CONTEXT, kv_ledger=ledger)
        template = load_chat_template(gguf.metadata, tokenizer)
        engine = Engine(decoder, tokenizer, context=CONTEXT, template=template, identity=lambda: identify(gguf))
        llm = LLM.from_engine(engine, release=ledger.release_all)
        outcome = Stress(llm, ask_alone(llm), sessions=contexts is None).run(threads=8, seconds=4, seed=1)
        template.close()
    assert outcome.faults == []
    assert outcome.refused == 0
    assert sum(outcome.asked.values()) > 50
    assert ledger.held_bytes == 0


def test_what_others_read_already_is_scored_whole(tmp_path):
    """A prefix that is shared spares its computation only to those who do not want what comes out of it."""
    with LLM(make_tiny_model(tmp_path / "m.gguf")) as llm:
        text = "the house in the hill was on the sea and the " * 12
        first = [llm.score(text), llm.embed(text).tobytes(), llm.logits(llm.tokenize(text)).tobytes()]
        llm.complete(text, max_tokens=2, temperature=0)
        again = [llm.score(text), llm.embed(text).tobytes(), llm.logits(llm.tokenize(text)).tobytes()]
    assert first == again
