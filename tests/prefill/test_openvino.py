"""A second real provider from end to end, where it is here: OpenVINO, on whatever it finds."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.prefill.backend import OnnxBackend
from edgerun.prefill.providers import Device, find_devices
from edgerun.prefill.sessions import Sessions
from tests.prefill.making import DENSE_F32, attached, build, relative, tokens

FAMILIES = [*(name for name in DENSE_F32 if name not in ("llama-linear", "llama-yarn", "llama3-rope")), "mixtral"]


@pytest.fixture(scope="module")
def openvino() -> Device:
    for device in find_devices()[0]:
        if device.kind.name == "openvino":
            return device
    pytest.skip("no OpenVINO device")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_and_decoding_after_it(models, tmp_path, openvino, name):
    """No node falls back to the CPU's own provider, and the cache is the decoder's."""
    model, ids = models(name), tokens(45)
    built = build(model, tmp_path, "fp32", (32,))
    backend = OnnxBackend(model.spec, built, Sessions(built, openvino, threads=2))
    runs = [model.decoded(prompts_on, ids, (3, 1, 4)) for prompts_on in (None, backend)]
    assert backend.name == f"{openvino.name}:fp32"
    np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("scheme", "most"), [("fp16", 0.01), ("w8a16", 0.03), ("", 0.07)])
def test_narrow_schemes(models, tmp_path, openvino, scheme, most):
    """ "": its best one. On a processor without an int8 dot product that is not w8a8: pairs of products saturate."""
    scheme = scheme or openvino.kind.schemes[0]
    model, ids = models("llama"), tokens(100)
    want = model.logits(ids)
    built = build(model, tmp_path, scheme, (32, 128))
    backend = OnnxBackend(model.spec, built, Sessions(built, openvino, threads=2))
    with attached(backend, model.decoder):
        assert relative(model.logits(ids), want) < most
