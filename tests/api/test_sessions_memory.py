"""All sessions of a model share the memory that its plan has for them, measured where it counts: in a process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from edgerun.api import LLM
from edgerun.engine import Engine
from edgerun.errors import DoesNotFitError, UsageError
from edgerun.formats.gguf import open_gguf
from edgerun.kv import KvLedger
from edgerun.models import Decoder, holdings, load_spec
from edgerun.text import load_tokenizer
from edgerun.weights import ResidentStore
from tests.tiny_model import make_tiny_model

CONTEXT = 512
PROMPT = [(7 * i) % 200 for i in range(300)]

FIVE_SESSIONS = """
import json, sys
from edgerun.api import LLM
from edgerun.api.weights import plan_weights
from edgerun.device import peak_bytes
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import open_gguf
from edgerun.models import holdings, load_spec

path, context = sys.argv[1], 1024
with open_gguf(path) as gguf:
    spec = load_spec(gguf)
    asked = plan_weights(gguf, spec, context=context, memory_bytes=None, kernels="auto").total_bytes + (16 << 20)
prompt = [(7 * i) % 200 for i in range(1000)]
texts, refused, shared = [], [], 0
with LLM(path, context=context, memory=asked) as llm:
    budget, limit = llm.engine.plan.budget_bytes, llm.engine.plan.kv_limit_bytes
    texts.append(llm.complete(prompt, temperature=0, max_tokens=4).text[:1])  # its cache stays, idle
    sessions = [llm.session() for _ in range(5)]
    for number, session in enumerate(sessions):
        try:
            session.complete([number, *prompt[1:]], temperature=0, max_tokens=4)
        except DoesNotFitError as error:
            refused.append(str(error))
    for session in sessions:
        session.close()
    sessions = [llm.session() for _ in range(3)]  # that begin alike
    for session in sessions:
        texts.append(session.complete(prompt, temperature=0, max_tokens=1).text[:1])
        shared += 1
    for session in sessions:
        session.close()
    for _ in range(3):  # each is gone before the next one comes
        texts.append(llm.session().complete(prompt, temperature=0, max_tokens=4).text[:1])
print(json.dumps({"shared": shared, "budget": budget, "peak": peak_bytes(), "refused": refused, "texts": texts,
                  "limit": limit, "kv": holdings.kv_bytes(spec, 1004)}))
"""


def test_five_sessions_stay_within_the_budget(tmp_path):
    path = make_tiny_model(tmp_path / "m.gguf", layers=16, head_dim=256, context=1024)
    done = subprocess.run(
        [sys.executable, "-c", FIVE_SESSIONS, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kv"] > 30 << 20, "or five of them would not show"
    assert said["peak"] <= said["budget"]
    fit = said["limit"] // said["kv"]
    assert len(said["refused"]) == max(0, 5 - fit)
    assert all("close sessions that are no longer needed" in text for text in said["refused"])
    assert (len(said["texts"]), said["shared"]) == (1 + 3 + 3, 3), "three that begin alike share pages"
    assert len(set(said["texts"])) == 1


@pytest.fixture
def tight(tmp_path, kernels):
    """A function: caches of so many whole contexts -> an LLM that has no more."""
    with open_gguf(make_tiny_model(tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        store = ResidentStore(gguf, spec, kernels)

        def make(contexts: float) -> tuple[LLM, KvLedger]:
            ledger = KvLedger(int(contexts * holdings.kv_bytes(spec, CONTEXT)))
            decoder = Decoder(spec, store, kernels, context=CONTEXT, kv_ledger=ledger)
            engine = Engine(decoder, load_tokenizer(gguf.metadata), context=CONTEXT)
            return LLM.from_engine(engine, release=ledger.release_all), ledger

        yield make


def test_an_idle_cache_gives_way_to_a_session_and_the_other_way_round(tight):
    llm, ledger = tight(1)
    with llm:
        expected = llm.complete(PROMPT, temperature=0, max_tokens=20)
        assert llm.complete(PROMPT, temperature=0, max_tokens=20).usage.reused_tokens > len(PROMPT) - 5
        with llm.session() as session:
            assert session.complete(PROMPT, temperature=0, max_tokens=20).text == expected.text
            with pytest.raises(DoesNotFitError):
                llm.complete(PROMPT, temperature=0, max_tokens=20)
        again = llm.complete(PROMPT, temperature=0, max_tokens=20)
        assert again.text == expected.text
        assert ledger.held_bytes <= ledger.limit_bytes


def test_a_refusal_leaves_a_session_as_it_was(tight):
    roomy, _ = tight(10)
    with roomy:
        whole = roomy.session()
        for _ in range(3):
            whole.complete([5, 6, 7], temperature=0, max_tokens=110)
    llm, _ = tight(1)
    with llm:
        session, other = llm.session(), llm.session()
        session.complete([5, 6, 7], temperature=0, max_tokens=110)
        other.complete(PROMPT[:220], temperature=0, max_tokens=5)
        before = session.ids
        with pytest.raises(DoesNotFitError, match="sessions of this model"):
            session.complete([5, 6, 7] + PROMPT[:150], temperature=0, max_tokens=110)
        assert session.ids == before
        twin = other.fork()  # which shares what there is, and may not write in it
        with pytest.raises(DoesNotFitError):
            twin.complete([1], temperature=0, max_tokens=5)
        twin.close()
        other.close()
        for _ in range(2):
            session.complete([5, 6, 7], temperature=0, max_tokens=110)
        assert session.ids == whole.ids


def test_what_ends_gives_its_memory_back(tight):
    llm, ledger = tight(3)
    with llm:
        sessions = [llm.session() for _ in range(3)]
        for number, session in enumerate(sessions):
            session.complete([number, *PROMPT[1:]], temperature=0, max_tokens=1)
        assert ledger.held_bytes > 2.9 * ledger.limit_bytes / 3
        twin = sessions[0].fork()
        with pytest.raises(DoesNotFitError):
            twin.complete([1], temperature=0, max_tokens=1)
        twin.close()
        sessions[0].clear()
        twin = sessions[1].fork()
        assert twin.complete([1], temperature=0, max_tokens=5).text == (
            sessions[1].complete([1], temperature=0, max_tokens=5).text
        )
        twin.close()
        twin.close()
        with pytest.raises(UsageError, match="this session is closed"):
            twin.complete([1])
        with pytest.raises(UsageError, match="this session is closed"):
            twin.fork()
        del session, twin
        sessions.clear()
        gc.collect()
        llm.engine.decoder.pages.prefixes.release()  # what is remembered gives way to others; nothing else is held
        assert ledger.held_bytes == 0
        last = llm.session()
        last.complete(PROMPT, temperature=0, max_tokens=1)
        assert ledger.held_bytes
    assert ledger.held_bytes == 0, "the model was closed"
    last.close()
