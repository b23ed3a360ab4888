"""Experts of a mixture on a prompt backend: the same results whoever computes which."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.errors import Cancelled, ReadError, UnsupportedError
from edgerun.models.prompt import PromptWalk, on_backend
from edgerun.prefill import expert_rows
from edgerun.prefill.backend import OnnxBackend
from edgerun.prefill.expert_rows import least_expert_rows
from edgerun.prefill.ladder import LADDER
from edgerun.prefill.providers import device_named
from edgerun.prefill.sessions import Sessions
from tests.prefill.making import EXPERTS_F32, attached, build, ort_backend, ranges_of, relative, tokens

WITHIN = 1e-3
NONE, ALL = 10**9, 1


@pytest.fixture
def there(monkeypatch):
    """How many experts' graphs ran."""
    seen = []
    run = Sessions.run

    def counted(self, graph, feeds):
        if graph.expert is not None:
            seen.append(graph)
        return run(self, graph, feeds)

    monkeypatch.setattr(Sessions, "run", counted)
    return seen


@pytest.mark.parametrize("sizes", [(0,), LADDER], ids=["free", "ladder"])
@pytest.mark.parametrize("name", EXPERTS_F32)
def test_on_both_sides(models, tmp_path, there, name, sizes):
    model, ids = models(name), tokens(70)
    want = model.logits(ids)
    built = build(model, tmp_path, sizes=sizes, experts=True)
    runs = []
    for least in (ALL, 36, NONE):
        there.clear()
        with attached(ort_backend(model, built, expert_rows=least), model.decoder):
            np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)
        runs.append(len(there))
    assert runs[0] > runs[1] > runs[2] == 0, "all of them, some, none"


@pytest.fixture(scope="module")
def built(models, tmp_path_factory):
    """(family, sizes) -> what was built, once."""
    folder, known = tmp_path_factory.mktemp("experts"), {}

    def get(name, sizes):
        if (name, sizes) not in known:
            known[name, sizes] = build(models(name), folder, sizes=sizes, experts=True)
        return known[name, sizes]

    return get


@pytest.mark.parametrize("name", EXPERTS_F32)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(2, 600), least=st.integers(1, 80), sizes=st.sampled_from([(0,), (32,), LADDER]))
def test_any_length_and_share(models, built, name, length, least, sizes):
    model, ids = models(name), tokens(length)
    want = model.logits(ids)
    with (
        closing(ort_backend(model, built(name, sizes), expert_rows=least)) as backend,
        attached(backend, model.decoder),
    ):
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)


def test_speeds_change_no_bit(models, tmp_path):
    model, ids = models("qwen2moe"), tokens(300)
    built = build(model, tmp_path, "w8a8", experts=True)
    runs = []
    for overlap in (True, True, False):
        with attached(ort_backend(model, built, overlap=overlap, expert_rows=40), model.decoder):
            runs.append(model.logits(ids))
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(("scheme", "most"), [("fp16", 0.002), ("w8a16", 0.03), ("w8a8", 0.08), ("w7a8", 0.09)])
@pytest.mark.parametrize("name", ["olmoe", "smallthinker", "qwen2moe"])
def test_narrow_schemes(models, tmp_path, name, scheme, most):
    model, ids = models(name), tokens(90)
    want = model.logits(ids)
    with attached(ort_backend(model, build(model, tmp_path, scheme, experts=True), expert_rows=ALL), model.decoder):
        errors = [relative(got, row) for got, row in zip(model.logits(ids), want, strict=True)]
    assert 1e-5 < np.median(errors) < most, "of most rows: in a few a router's near-tie falls the other way"


def test_ranges_cover_what_experts_see(models):
    model = models("olmoe")
    from edgerun.prefill.schemes import scheme_named

    plain, with_experts = (ranges_of(model, scheme_named("w8a8"), experts=experts) for experts in (False, True))
    new = {"expert_in", "expert_in.gate", "expert_in.up", "expert_down", "expert_down.t"}
    for before, after in zip(plain, with_experts, strict=True):
        assert set(after.kept) - set(before.kept) == new
        assert all(low < 0 < high for low, high in (after.kept[name] for name in new))
        assert not {"expert_in", "expert_down"} & set(after.outliers)


def test_a_prompt_can_be_stopped(models, tmp_path, there):
    """Between two experts; what runs is waited for, and the next prompt is right."""
    model, ids = models("olmoe"), tokens(200)
    want = model.logits(ids)
    backend = ort_backend(model, build(model, tmp_path, experts=True), expert_rows=ALL)
    with attached(backend, model.decoder):
        with pytest.raises(Cancelled):
            cache = model.decoder.new_cache(200)
            model.decoder.forward(ids, cache, cancelled=lambda: len(there) > 5)
        assert cache.length == 0
        assert len(there) < 12, "not all of them"
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)


def test_a_failure_leaves_nothing_running(models, tmp_path, monkeypatch):
    model, ids = models("olmoe"), tokens(100)
    want = model.logits(ids)
    backend = ort_backend(model, build(model, tmp_path, experts=True), expert_rows=ALL)
    run, running = Sessions.run, []

    def fails(self, graph, feeds):
        if graph.expert == 3:
            raise ReadError("the device is gone")
        if graph.expert is None:
            return run(self, graph, feeds)
        running.append(graph)
        try:
            return run(self, graph, feeds)
        finally:
            running.remove(graph)

    with attached(backend, model.decoder):
        with monkeypatch.context() as patched:
            patched.setattr(Sessions, "run", fails)
            with pytest.raises(ReadError, match="the device is gone"):
                model.logits(ids)
            assert not running
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)


def test_a_damaged_file_is_built_again(models, tmp_path):
    model, ids = models("olmoe"), tokens(60)
    want = model.logits(ids)
    built = build(model, tmp_path, experts=True)
    path = built.folder / "layer-001.experts"
    path.write_bytes(path.read_bytes()[:-4096])
    again = build(model, tmp_path, experts=True)
    assert path.stat().st_size > 0 and again.folder == built.folder
    with attached(ort_backend(model, again, expert_rows=ALL), model.decoder):
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=WITHIN)
    said = json.loads((built.folder / "layer-001.json").read_text())
    assert "0/expert_in.gate" in said["experts"]


def test_with_and_without_are_two_folders(models, tmp_path):
    model = models("olmoe")
    assert build(model, tmp_path).folder != build(model, tmp_path, experts=True).folder


def test_a_dense_model_has_none(models, tmp_path):
    with pytest.raises(UnsupportedError, match="it has none; leave out :experts"):
        build(models("llama"), tmp_path, experts=True)


def test_few_rows_are_the_kernels(models, tmp_path, monkeypatch):
    """What was measured decides: here the device is made slow below 64 rows, or always."""
    model = models("olmoe")
    built = build(model, tmp_path, experts=True)
    sessions = Sessions(built, device_named("ort"), threads=2)
    for slow_below, least in ((64, 64), (0, 8)):
        times = iter(t for rows in (128, 64, 32, 16, 8) for t in ((2.0 if rows < slow_below else 0.5), 1.0))
        monkeypatch.setattr(expert_rows, "_best_s", lambda run, times=times: (run(), next(times))[1])
        assert least_expert_rows(model.decoder, sessions, 0, (0,), 2) == least
    times = iter([2.0, 1.0])
    monkeypatch.setattr(expert_rows, "_best_s", lambda run: next(times))
    with pytest.raises(UnsupportedError, match="faster on the kernels"):
        least_expert_rows(model.decoder, sessions, 0, (0,), 2)
    sessions.close()


def test_the_three_steps_are_the_whole(models):
    """What a backend composes is what the decoder does by itself."""
    model, ids = models("qwen2moe"), tokens(50)
    want = model.logits(ids)

    class Steps:
        name, least_tokens, wave_tokens = "steps", 1, 64

        def run(self, walk: PromptWalk) -> None:
            from edgerun.prefill.observe import KernelLayers

            whole = walk.experts

            def split(layer: int) -> None:
                routed = walk.route_rows(layer)
                walk.compute_experts(routed, routed.chosen[1::2])
                walk.compute_experts(routed, routed.chosen[::2])
                walk.combine_experts(routed)

            walk.experts = split  # type: ignore[method-assign]
            KernelLayers(lambda *seen: None).run(walk)
            walk.experts = whole  # type: ignore[method-assign]

    with on_backend(model.decoder, Steps()):
        assert np.array_equal(model.logits(ids), want)


def test_the_default_threshold_is_used(models, tmp_path):
    model = models("olmoe")
    backend = OnnxBackend(model.spec, build(model, tmp_path, experts=True), Sessions.__new__(Sessions))
    assert backend.expert_rows == 16
