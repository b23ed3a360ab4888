"""At the memory that a model is said to need it runs, and answers as it does with all memory there is."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgerun.api.weights import open_store
from edgerun.events import ignore
from edgerun.formats.gguf import GgmlType, open_gguf
from edgerun.hub import embedded_model
from edgerun.kernels import kernels_missing
from edgerun.models import Decoder, load_spec
from edgerun.planning import plan_memory
from edgerun.planning.process import ProcessState, loaded_bytes
from edgerun.text.template_process import AT_REST_BYTES
from edgerun.units import format_size
from edgerun.weights import ResidentStore, make_catalog
from tests.models.instances import INSTANCES, Instance, tokens_of, write
from tests.tiny_model import make_tiny_model

MIB = 1 << 20
# Wide enough that a streamed model needs less than a resident one
TYPES = [
    Instance(f"{arch}-{type.name}", arch, type, d=256, ff=256, heads=16, layers=3, experts=experts, used=experts // 4)
    for arch, experts in (("llama", 0), ("qwen3moe", 8))
    for type in (GgmlType.F32, GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_1)
]


def logits(decoder, tokens, context):
    """Of a prompt and of the tokens after it."""
    cache = decoder.new_cache(context)
    prompt = len(tokens) - 5
    rows = [decoder.forward(tokens[:prompt], cache, logits="all")]
    rows += [decoder.forward([token], cache) for token in tokens[prompt:]]
    return np.concatenate(rows)


@pytest.mark.parametrize("instance", [*INSTANCES.values(), *TYPES], ids=lambda each: each.name)
def test_a_plan_at_the_floor_runs(instance, tmp_path, kernels):
    tokens = tokens_of(instance)
    with open_gguf(write(instance, tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        catalog = make_catalog(spec.tensors, spec.n_layers)
        whole = ResidentStore(gguf, spec, kernels)
        for context in (len(tokens), 100) if instance in TYPES else (100,):
            expected = logits(Decoder(spec, whole, kernels, context=context), tokens, context)

            def within(budget, context=context):
                return plan_memory(
                    "m", catalog, spec, kernels, context=context, budget_bytes=budget, runtime_bytes=100 * MIB
                )

            plan = within(within(1 << 40).floor_bytes)
            store, close = open_store(gguf, spec, kernels, plan, prefetch=True, events=ignore)
            try:
                decoder = Decoder(spec, store, kernels, context=context)
                assert np.array_equal(logits(decoder, tokens, context), expected)
            finally:
                close()


AT_THE_FLOOR = """
import json, sys
from edgerun.api import LLM
from edgerun.api.weights import plan_weights
from edgerun.device import peak_bytes
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec

path, context, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if not memory:
    with open_gguf(path) as gguf:
        print(plan_weights(gguf, load_spec(gguf), context=context, memory_bytes=None, kernels="auto").floor_bytes)
    sys.exit()
try:
    llm = LLM(path, context=context, memory=memory, seed=1)
except DoesNotFitError as error:
    print(json.dumps(str(error)))
    sys.exit()
with llm:
    ids = [5 + i % 200 for i in range(context - 20)]
    assert llm.complete(ids, temperature=0, max_tokens=15).usage.completion_tokens
    llm.complete("Once upon a time", max_tokens=10)
print(json.dumps({"peak": peak_bytes()}))
"""


def in_a_process(*arguments):
    """What a fresh process says."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_FLOOR, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("which", ["tiny", "many layers", "a long vocabulary", "a mixture"])
def test_a_process_stays_within_the_floor(tmp_path, which):
    context = 400
    if which == "a mixture":
        path = embedded_model()
        if path is None:
            pytest.skip("no model is packaged with this build")
    elif which == "tiny":
        path = make_tiny_model(tmp_path / "m.gguf")
    elif which == "many layers":
        path = make_tiny_model(tmp_path / "m.gguf", layers=30, head_dim=128)
    else:
        path = make_tiny_model(tmp_path / "m.gguf", more_tokens=100_000)
    floor = in_a_process(path, context, 0)
    refused = in_a_process(path, context, floor - MIB)
    assert isinstance(refused, str), f"{floor - MIB} of {floor} bytes were enough"
    assert f"needs at least {format_size(floor)} of memory" in refused
    peak = in_a_process(path, context, floor)["peak"] + AT_REST_BYTES  # and of the process of the chat template
    assert peak <= floor
    assert floor < peak * 1.75, "a floor that far above what is used helps nobody"


def test_kernels_that_must_be_compiled_are_counted(tmp_path, monkeypatch):
    path = make_tiny_model(tmp_path / "m.gguf")
    assert not kernels_missing("reference", [GgmlType.F32])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert kernels_missing("portable", [GgmlType.F32])
    state = ProcessState(50 * MIB, 20 * MIB, 40 * MIB)
    with open_gguf(path) as gguf:
        warm, cold = (loaded_bytes(state, gguf.metadata, compiles=compiles) for compiles in (False, True))
    assert cold - warm > 100 * MIB


def test_commands_name_the_same_number(tmp_path):
    path = make_tiny_model(tmp_path / "m.gguf")

    def command(*arguments):
        words = [sys.executable, "-m", "edgerun", *map(str, arguments), "-c", "64"]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)

    floor = json.loads(command("plan", path, "--json").stdout)["memory"]["floor_bytes"]
    for words in (("run", path, "Hello", "-n", "2"), ("bench", path, "-p", "4", "-n", "2", "-r", "1"), ("plan", path)):
        refused = command(*words, "--memory", floor - MIB)
        assert refused.returncode == 4
        assert f"needs at least {format_size(floor)} of memory" in refused.stderr
        done = command(*words, "--memory", format_size(floor))
        assert done.returncode == 0, done.stderr
