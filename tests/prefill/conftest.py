"""Models that all tests of prompt backends share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.models.instances import INSTANCES
from tests.prefill.making import Model, load

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

Models = Callable[[str], Model]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, kernels) -> Iterator[Models]:
    """name of an instance -> its model, made once."""
    folder, known = tmp_path_factory.mktemp("prefill-models"), {}

    def get(name: str) -> Model:
        if name not in known:
            known[name] = load(INSTANCES[name], folder / f"{name}.gguf", kernels)
        return known[name]

    yield get
    for model in known.values():
        model.gguf.close()
