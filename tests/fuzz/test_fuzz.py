"""Hundreds of damaged files in the suite, and that the fuzzer would notice what it looks for (`tools/fuzz.py`)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.formats.gguf import open_gguf
from tests.models.instances import INSTANCES, write
from tools.fuzzing.case import Bench, Outcome
from tools.fuzzing.gguf_parts import put_together, take_apart
from tools.fuzzing.mutations import damage_gguf, damage_json, damage_safetensors
from tools.fuzzing.template_mutations import damage_template
from tools.fuzzing.workers import run_cases

ROOT = Path(__file__).parents[2]
KINDS = "gguf,safetensors,llama2c,tokenizer,template"


def test_damaged_files_are_refused_or_answer(tmp_path):
    command = [sys.executable, "tools/fuzz.py", "--start", "7", "--cases", "300", "--jobs", "2", "--kinds", KINDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = re.findall(r"^ +(\d+)  (\w+) +(.+)$", done.stdout, re.MULTILINE)
    counts = {(kind, word): int(count) for count, kind, word in rows}
    assert sum(counts.values()) == 300
    assert counts["gguf", "same"] >= 5, "files that mean the same must answer the same"
    assert counts["gguf", "ok"] >= 10
    assert counts["gguf", "refused: FormatError"] >= 50
    assert counts["safetensors", "ok"] + counts["tokenizer", "ok"] >= 10


class _Bench:
    """What a case could do to the process that it runs in."""

    def run(self, seed, kinds):
        if seed == 1:
            os.abort()
        if seed == 2:
            time.sleep(60)
        if seed == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if seed == 4:
            try:
                np.ones(1 << 29)
            except MemoryError:
                return Outcome("gguf", "over memory")
        return Outcome("gguf", "ok")


def test_crashes_hangs_and_memory_are_told_apart():
    outcomes = dict(run_cases(_Bench(), range(8), ["gguf"], jobs=2, time_s=2))
    words = {seed: outcome.word for seed, outcome in outcomes.items()}
    assert words == {0: "ok", 1: "crash", 2: "hang", 3: "crash", 4: "over memory", 5: "ok", 6: "ok", 7: "ok"}
    assert str(int(signal.SIGSEGV)) in outcomes[3].detail
    assert [outcomes[seed].good for seed in range(8)] == [True, False, False, False, False, True, True, True]


def test_wrong_answers_and_wrong_exceptions_are_seen(tmp_path, kernels, monkeypatch):
    """The judge, with a library that makes the mistakes."""
    from tools.fuzzing.corpus import Subject

    subject = Subject("gguf", "llama", write(INSTANCES["llama"], tmp_path / "llama.gguf"))
    bench = Bench([subject], kernels)

    def word(harmless=False):
        return bench._judged(subject, subject.path, harmless, Random(0))[0]

    assert word() == "ok"
    assert word(harmless=True) == "same"
    for error, expected in ((FormatError("x"), "refused: FormatError"), (KeyError("x"), "wrong exception: KeyError")):
        with monkeypatch.context() as patch:
            patch.setattr("tools.fuzzing.case.load_spec", lambda gguf, error=error: (_ for _ in ()).throw(error))
            assert word() == expected
            assert word(harmless=True) == ("harmless change refused" if expected.startswith("refused") else expected)
    answers = iter([b"one", b"another", b"one", b"one"])
    with monkeypatch.context() as patch:
        patch.setattr("tools.fuzzing.case._logits", lambda *args: next(answers))
        assert word() == "streamed differs"
        assert word(harmless=True) == "harmless change differs"


@pytest.mark.parametrize("name", ["llama", "qwen3moe-small-Q4_0", "gemma3"])
def test_parts_are_the_whole(tmp_path, name):
    data = write(INSTANCES[name], tmp_path / "a.gguf").read_bytes()
    again = tmp_path / "b.gguf"
    again.write_bytes(put_together(take_apart(data)))
    with open_gguf(tmp_path / "a.gguf") as one, open_gguf(again) as two:
        assert list(one.metadata) == list(two.metadata)
        assert {name: one.raw(name).tobytes() for name in one.tensors} == {
            name: two.raw(name).tobytes() for name in two.tensors
        }


def test_the_same_seed_damages_alike(tmp_path):
    data = write(INSTANCES["llama"], tmp_path / "a.gguf").read_bytes()
    other = write(INSTANCES["olmoe"], tmp_path / "b.gguf").read_bytes()
    document = b'{"a": [1, {"b": null}], "model": {"type": "BPE"}}'
    shard = len(document).to_bytes(8, "little") + document + bytes(64)

    def everything(seed):
        rng = Random(seed)
        return (
            damage_gguf(data, rng, other),
            damage_json(document, rng, document),
            damage_safetensors(shard, rng, shard),
            damage_template("{% for m in messages %}{{ m }}{% endfor %}", rng),
        )

    first = [everything(seed) for seed in range(60)]
    assert first == [everything(seed) for seed in range(60)]
    assert sum(made[0][0] != data for made in first) > 50
