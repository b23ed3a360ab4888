"""Models of every family, written once."""

from __future__ import annotations

import pytest

from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, write
from tests.weights.streaming import run


@pytest.fixture(scope="module")
def models(tmp_path_factory, kernels):
    """name -> (open file, spec, what the resident model says to the tokens)."""
    folder, known = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in known:
            gguf = open_gguf(write(INSTANCES[name], folder / f"{name}.gguf"))
            spec = load_spec(gguf)
            known[name] = gguf, spec, run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), name)
        return known[name]

    yield get
    for gguf, _, _ in known.values():
        gguf.close()
