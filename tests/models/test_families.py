"""A tiny instance of every family against logits that llama.cpp computed on the same file (tools/record_golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerun.formats.gguf import GgmlType, open_gguf
from edgerun.models import FAMILIES, Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, tokens_of, write

GOLDEN = Path(__file__).parent / "golden"
_EXACT = (GgmlType.F32,)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instances")


def decoder_of(name: str, directory: Path, kernels):
    path = directory / f"{name}.gguf"
    if not path.exists():
        write(INSTANCES[name], path)
    gguf = open_gguf(path)
    spec = load_spec(gguf)
    return Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_every_family_has_an_instance():
    assert {instance.arch for instance in INSTANCES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", INSTANCES)
def test_logits_are_llama_cpps(name, directory, kernels):
    want = np.load(GOLDEN / f"{name}.npy", allow_pickle=False)
    decoder = decoder_of(name, directory, kernels)
    ids = tokens_of(INSTANCES[name])
    got = decoder.forward(ids, decoder.new_cache(128), logits="all")
    limit = 1e-3 if INSTANCES[name].type in _EXACT else 2e-2
    assert error(got[3::4], want) <= limit


@pytest.mark.parametrize("name", [n for n, i in INSTANCES.items() if i.type == GgmlType.F32])
def test_chunked_equals_whole(name, directory, kernels):
    decoder = decoder_of(name, directory, kernels)
    ids = tokens_of(INSTANCES[name])
    whole = decoder.forward(ids, decoder.new_cache(128), logits="all")
    cache = decoder.new_cache(128)
    first = decoder.forward(ids[:13], cache, logits="all")
    single = [decoder.forward([token], cache)[0] for token in ids[13:20]]
    rest = decoder.forward(ids[20:], cache, logits="all")
    assert cache.length == len(ids)
    assert error(np.concatenate([first, single, rest]), whole) <= 1e-4
