"""A prompt on a backend equals the same prompt on our kernels: all families, lengths and chunk sizes."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.errors import UnsupportedError
from edgerun.formats.quants import dequantize
from edgerun.models import Decoder
from edgerun.models.prompt import on_backend
from edgerun.prefill.ladder import LADDER, graph_chunks
from edgerun.prefill.weights import LayerReader, same_nibbles
from edgerun.weights import StreamedExpertStore, StreamedLayerStore
from tests.models.instances import INSTANCES
from tests.prefill.making import DENSE_F32, EXPERTS_F32, attached, build, ort_backend, relative, tokens

WITHIN = 1e-3
PROMPT = 45
QUICK = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("sizes", [(0,), LADDER], ids=["free", "ladder"])
@pytest.mark.parametrize("name", DENSE_F32 + EXPERTS_F32)
def test_a_prompt_and_decoding_after_it(models, tmp_path, name, sizes):
    model = models(name)
    ids, later = tokens(PROMPT), tokens(4, seed=9)
    backend = ort_backend(model, build(model, tmp_path, sizes=sizes))
    runs = [model.decoded(prompts_on, ids, later) for prompts_on in (None, backend)]
    assert backend.timeline.backend_s > 0, "the backend was used"
    np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=WITHIN)


@pytest.fixture(scope="module")
def ladders(models, tmp_path_factory):
    """(family, sizes) -> a backend, opened once."""
    folder, known = tmp_path_factory.mktemp("ladders"), {}

    def get(name, sizes):
        if (name, sizes) not in known:
            known[name, sizes] = ort_backend(models(name), build(models(name), folder, sizes=sizes))
        return known[name, sizes]

    yield get
    for backend in known.values():
        backend.close()


LENGTHS = st.one_of(
    st.integers(1, 600),
    st.sampled_from([1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 258, 511, 512, 513, 600]),
)
SIZES = st.one_of(st.just((0,)), st.sets(st.sampled_from(LADDER), min_size=1).map(lambda some: tuple(sorted(some))))


@pytest.mark.parametrize("name", DENSE_F32 + EXPERTS_F32)
@QUICK
@given(length=LENGTHS, sizes=SIZES, more=st.integers(0, 40))
def test_any_length_and_ladder(models, ladders, name, length, sizes, more):
    """A prompt, then a second one appended to its cache, then a token."""
    model = models(name)
    ids, then = tokens(length), tokens(more, seed=8)
    results = []
    for backend in (None, ladders(name, sizes)):
        with on_backend(model.decoder, backend):
            cache = model.decoder.new_cache(length + more + 1)
            rows = [model.decoder.forward(ids, cache, logits="all")]
            if then:
                rows.append(model.decoder.forward(then, cache, logits="all"))
            rows.append(model.decoder.forward([5], cache))
        results.append(np.concatenate(rows))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=WITHIN)


@given(length=st.integers(1, 2000), sizes=SIZES)
def test_chunks_cover_a_prompt_once(length, sizes):
    cut = graph_chunks(length, sizes)
    assert [row for rows, _ in cut for row in range(rows.start, rows.stop)] == list(range(length))
    for rows, size in cut:
        assert size in sizes
        assert size == 0 or rows.stop - rows.start <= size
    for rows, size in cut[:-1]:
        assert size == 0 or rows.stop - rows.start == size, "only the last one is padded"


def test_short_prompts_are_the_kernels(models, tmp_path):
    model = models("llama")
    backend = ort_backend(model, build(model, tmp_path), least_tokens=10)
    with attached(backend, model.decoder):
        short = model.logits(tokens(9))
        assert backend.timeline.wall_s == 0, "nothing ran on the backend"
        model.logits(tokens(10))
        assert backend.timeline.backend_s > 0
    assert np.array_equal(short, model.logits(tokens(9)))


def test_hidden_states_too(models, tmp_path):
    model = models("qwen3")
    want = model.decoder.hidden(tokens(50), model.decoder.new_cache(50))
    with attached(ort_backend(model, build(model, tmp_path)), model.decoder):
        got = model.decoder.hidden(tokens(50), model.decoder.new_cache(50))
    np.testing.assert_allclose(got, want, rtol=0, atol=WITHIN)


# the rounding error that is to be expected of these random, tiny models: about twice what is seen, and never more than
# a scheme's own steps explain (int4 weights of random models are far off: only real, trained ones bear them)
ERRORS = {"fp16": 0.002, "w8a16": 0.03, "w8a8": 0.07, "w7a8": 0.08, "w4a16": 0.45}


@pytest.mark.parametrize("scheme", ERRORS)
@pytest.mark.parametrize("name", DENSE_F32)
def test_narrow_schemes(models, tmp_path, name, scheme):
    model, ids, later = models(name), tokens(PROMPT), tokens(3, seed=9)
    backend = ort_backend(model, build(model, tmp_path, scheme))
    runs = [model.decoded(prompts_on, ids, later) for prompts_on in (None, backend)]
    assert 1e-5 < relative(runs[1][:PROMPT], runs[0][:PROMPT]) < ERRORS[scheme], "narrow, and no more than that"
    assert relative(runs[1][PROMPT:], runs[0][PROMPT:]) < ERRORS[scheme], "decoding from these keys and values"


def test_more_bits_err_less(models, tmp_path):
    model, ids = models("llama"), tokens(300)
    want = model.logits(ids)
    errors = []
    for scheme in ("fp32", "fp16", "w8a16", "w8a8", "w4a16"):
        with attached(ort_backend(model, build(model, tmp_path, scheme, LADDER)), model.decoder):
            errors.append(relative(model.logits(ids), want))
    assert errors == sorted(errors)


def test_w8a8_does_not_saturate(models, tmp_path):
    """Pairs of u8 x s8 products can exceed 16 bits: as large as they come, the result is still exact."""
    model, ids = models("llama-Q8_0"), tokens(100)
    want = model.logits(ids)
    both = []
    for scheme in ("w8a8", "w8a16"):
        with attached(ort_backend(model, build(model, tmp_path, scheme)), model.decoder):
            both.append(relative(model.logits(ids), want))
    assert both[0] < 0.05 and both[1] < both[0]


def test_q4_0_is_kept_as_it_is(models):
    model = models("llama-Q4_0")
    info = model.gguf.tensors["blk.1.ffn_down.weight"]
    raw = model.gguf.raw(info.name)
    integers, scale = same_nibbles(raw)
    assert integers.min() == -8 and integers.max() == 7
    again = integers.reshape(len(scale), 32, -1) * scale[:, None, :]
    assert np.array_equal(again.reshape(integers.shape).T, dequantize(raw, info.type))


@pytest.mark.parametrize("name", ["llama-Q4_0", "qwen3moe-small-Q4_0"])
def test_w4a16_of_q4_0_errs_by_its_activations_only(models, tmp_path, name):
    """The same model in fp32 and in w4a16: the weights are the same numbers, so what is left is u16's rounding."""
    model, ids = models(name), tokens(60)
    results = []
    for scheme in ("fp32", "w4a16", "w8a16"):
        with attached(ort_backend(model, build(model, tmp_path, scheme)), model.decoder):
            results.append(model.logits(ids))
    assert relative(results[1], results[0]) < 0.3 * relative(results[2], results[0]), "int8 of Q4_0 is not the same"


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
@pytest.mark.parametrize("name", ["olmoe", "qwen2moe", "smallthinker", "llama", "gemma2", "llama-Q4_0"])
def test_streamed_equals_resident(models, tmp_path, kernels, name, scheme):
    model, ids = models(name), tokens(90)
    backend = ort_backend(model, build(model, tmp_path, scheme, (32,)))
    with attached(backend, model.decoder):
        want = model.logits(ids)
    if INSTANCES[name].experts:
        store = StreamedExpertStore(model.gguf, model.spec, kernels, slots=6, wave_tokens=256)
    else:
        store = StreamedLayerStore(model.gguf, model.spec, kernels, pinned=[], wave_tokens=256)
    with closing(store):
        decoder = Decoder(model.spec, store, kernels)
        before = backend.timeline.backend_s
        with attached(backend, decoder):
            got = model.logits(ids, decoder)
        assert backend.timeline.backend_s > before
    assert np.array_equal(got, want)


def test_streamed_in_short_waves(models, tmp_path, kernels):
    """Each wave is cut and padded by itself."""
    model, ids = models("llama"), tokens(90)
    want = model.logits(ids)
    with closing(StreamedLayerStore(model.gguf, model.spec, kernels, pinned=[1], wave_tokens=20)) as store:
        decoder = Decoder(model.spec, store, kernels)
        with attached(ort_backend(model, build(model, tmp_path, sizes=(32,))), decoder):
            got = model.logits(ids, decoder)
    np.testing.assert_allclose(got, want, rtol=0, atol=WITHIN)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("relu", "sparse feed-forward"),
        ("lfm2", "recurrent layers or short convolutions"),
        ("phi2", "LayerNorms or norms with biases"),
        ("granite", "scaled residuals"),
        ("arcee", "feed-forwards without gates"),
    ],
)
def test_models_without_graphs_are_refused(models, tmp_path, name, why):
    with pytest.raises(UnsupportedError, match=f"{why}.*--prefill kernels"):
        build(models(name), tmp_path)


@pytest.mark.parametrize("name", [n for n in DENSE_F32 if not n.startswith("gemma")])
def test_rotated_is_the_same_function(models, tmp_path, name):
    """Gemma's norms after products cannot be rotated; see test_shadow."""
    model, ids = models(name), tokens(PROMPT)
    want = model.logits(ids)
    with attached(ort_backend(model, build(model, tmp_path, rotated=True)), model.decoder):
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)


def test_a_rotated_bias_and_a_fused_part(models):
    """What is read is cut from the fused matrix before it is turned."""
    model = models("phi3")
    from edgerun.prefill.hadamard import rotate
    from edgerun.prefill.segments import products_of

    product = products_of(model.spec, 0)["qkv"]
    plain, turned = (LayerReader(model.gguf, model.spec, 0, rotated=rotated) for rotated in (False, True))
    norm = plain.norm(product)
    for part in product.parts:
        straight = plain.part(product, part).matrix * norm[:, None]
        np.testing.assert_allclose(rotate(straight, axis=0), turned.part(product, part).matrix, atol=1e-5)
