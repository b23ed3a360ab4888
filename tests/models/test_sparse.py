"""ReLU models: neuron by neuron computes what the whole feed-forward does, and what a file may claim."""

import numpy as np
import pytest

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufWriter, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, Instance, tokens_of, write


def copy(source, target, change=lambda name, info, data: (name, info.type, data), **metadata):
    """The file with its tensors and metadata changed."""
    with open_gguf(source) as gguf, GgufWriter(target, gguf.architecture) as w:
        for key, value in (dict(gguf.metadata) | metadata).items():
            if key != "general.architecture" and value is not None:
                w.add(key, value)
        for name, info in gguf.tensors.items():
            changed = change(name, info, np.array(gguf.raw(name)))
            if changed is not None:
                w.add_tensor(changed[0], changed[2], changed[1])
    return target


def logits(path, kernels):
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        ids = tokens_of(INSTANCES["relu"])
        return spec, decoder.forward(ids, decoder.new_cache(128), logits="all")


def test_like_the_dense_twin(tmp_path, kernels):
    path = write(INSTANCES["relu"], tmp_path / "sparse.gguf")

    def untranspose(name, info, data):
        if name.endswith("ffn_down_t.weight"):
            return name.replace("ffn_down_t", "ffn_down"), info.type, np.ascontiguousarray(data.view(np.float32).T)
        return name, info.type, data.view(np.float32)

    dense = copy(path, tmp_path / "dense.gguf", untranspose, **{"llama.hidden_activation": "relu"})
    spec, got = logits(path, kernels)
    twin, want = logits(dense, kernels)
    assert (spec.sparse, twin.sparse) == (True, False)
    assert (spec.activation, twin.activation) == ("relu", "relu")
    assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["relu", "relu2-Q4_0", "relu-Q8_0", "relu-Q4_K", "relu2-Q5_1"])
def test_chunks_single_tokens_and_the_whole_are_the_same(tmp_path, kernels, name):
    with open_gguf(write(INSTANCES[name], tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        ids = tokens_of(INSTANCES[name])
        whole = decoder.forward(ids, decoder.new_cache(128), logits="all")
        cache = decoder.new_cache(128)
        rows = [decoder.forward(ids[:13], cache, logits="all"), decoder.forward(ids[13:20], cache, logits="all")]
        rows += [decoder.forward([token], cache) for token in ids[20:]]
        assert np.array_equal(np.concatenate(rows), whole)


def test_silence(tmp_path, kernels):
    """A layer of which no neuron fires adds nothing."""

    def silent(name, info, data):
        data = data.view(np.float32)
        if name.endswith("ffn_gate.bias"):
            data = np.full_like(data, -100.0)
        return name, info.type, data

    spec, got = logits(copy(write(INSTANCES["relu"], tmp_path / "a.gguf"), tmp_path / "b.gguf", silent), kernels)
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("instance", "metadata", "error", "match"),
    [
        (INSTANCES["relu"], {"llama.hidden_activation": "silu"}, FormatError, "ffn_down_t"),
        (INSTANCES["llama"], {"llama.hidden_activation": "swoosh"}, UnsupportedError, "'swoosh' is not supported"),
        (INSTANCES["llama"], {"llama.hidden_activation": 3}, FormatError, "must be a string"),
        (Instance("odd", "llama", d=48, ff=320, sparse=True), {}, UnsupportedError, "multiple of 32"),
    ],
)
def test_what_is_refused(tmp_path, instance, metadata, error, match):
    path = write(instance, tmp_path / "a.gguf")
    if metadata:
        path = copy(
            path, tmp_path / "b.gguf", lambda name, info, data: (name, info.type, data.view(np.float32)), **metadata
        )
    with open_gguf(path) as gguf, pytest.raises(error, match=match):
        load_spec(gguf)
