"""Device profiles, costs of operations, rooflines and requests: what must follow from what."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edgerun.errors import FormatError, NotFoundError
from edgerun.kernels.layout import PackedSizes
from edgerun.planning.costs import pass_operations
from edgerun.planning.device_profile import load_profile, shipped_profiles
from edgerun.planning.rates import AttentionRates, ProductRates, Rates
from edgerun.planning.request import predict_request
from edgerun.planning.roofline import Limits, roofline
from edgerun.profiling.energy import EnergyMeter
from edgerun.profiling.measure_device import measure_device
from tests.planning.test_memory import GIB, LLAMA_7B, OLMOE, plan

SIZES = PackedSizes(16)
RATES = Rates({"Q4_0": ProductRates(25e9, 300e9)}, 1e9, 1 << 20, AttentionRates(10e9, 50e9))


def test_shipped_profiles_are_whole_and_say_where_figures_stand() -> None:
    found = {name: load_profile(path) for name, path in shipped_profiles().items()}
    assert len(found) >= 4 and {each.kind for each in found.values()} == {"measured", "published"}
    for profile in found.values():
        assert profile.kind == "measured" or any("http" in source for source in profile.sources)
        rates, taken = profile.rates(OLMOE[0], 1 << 20)
        assert rates.disk_bytes_per_s > 0 and not taken
        assert load_again(profile.as_yaml()) == profile or profile.kind == "published"


def test_what_is_installed_has_the_profiles(tmp_path: Path) -> None:
    """The part of `setup.py` that pyproject.toml cannot say, on a package of no modules."""
    setuptools = pytest.importorskip("setuptools")
    path = Path(__file__).parents[2] / "setup.py"
    spec = importlib.util.spec_from_file_location("edgerun_setup", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    build = module.BuildWithProfiles(setuptools.Distribution({"packages": []}))
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    build.run()
    built = {each.name: each.read_bytes() for each in (tmp_path / "edgerun" / "planning" / "profiles").iterdir()}
    assert built == {each.name: each.read_bytes() for each in shipped_profiles().values()} and "pi-5.yaml" in built


def load_again(text: str) -> object:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "device.yaml"
        path.write_text(text)
        return load_profile(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cores", 0, "cores must be"),
        ("cores", True, "cores must be"),
        ("kind", "guessed", "kind must be one of"),
        ("memory_bandwidth", {}, "memory_bandwidth must map"),
        ("memory_bandwidth", {"x": 1}, "memory_bandwidth must map"),
        ("memory_bandwidth", {1: float("nan")}, "number above 0"),
        ("products", {}, "no entry"),
        ("products", {"Q4_0": {"decode_bytes_per_s": 1}}, "no prompt_ops_per_s"),
        ("products", {"Q4_0": {"decode_bytes_per_s": 1, "prompt_ops_per_s": 1, "cached_bytes_per_s": -1}}, "above 0"),
        ("cache_bytes", "300M", "cache_bytes must be"),
        ("sources", [], "sources must say"),
        ("magic", 1, "which no profile has"),
        ("disk", {"random": {4096: -1.0}}, "number above 0"),
        ("name", "", "name must be a text"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    said = yaml.safe_load(shipped_profiles()["pi-5"].read_text())
    said[key] = value
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump(said))
    with pytest.raises(FormatError, match=message):
        load_profile(path)


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    many = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8))
    pi = shipped_profiles()["pi-5"].read_text()
    for content in (
        *("[", "!!python/object/apply:os.system [echo]", "a: *b", "- 1", "x" * (2 << 20)),
        many + pi.replace("cores: 4", "cores: *a7"),  # ten million, named in 500 bytes
        pi.replace("cores: 4", "cores: 0x" + "f" * 20000),  # of more digits than Python writes
    ):
        path.write_text(content)
        began = time.process_time()
        with pytest.raises(FormatError):
            load_profile(path)
        assert time.process_time() - began < 5
    with pytest.raises(NotFoundError):
        load_profile(tmp_path / "none.yaml")


def test_disk_rates_lie_between_measured_ones() -> None:
    profile = load_profile(shipped_profiles()["pi-5"])
    rates = [profile.disk_bytes_per_s(size) for size in (1, 65536, 1 << 20, 4 << 20, 1 << 30)]
    assert rates == sorted(rates) and rates[0] == rates[1] and rates[3] == rates[4] and rates[1] < rates[2] < rates[3]


def test_costs_by_hand() -> None:
    catalog, spec = LLAMA_7B
    token = list(pass_operations(catalog, spec, SIZES, position=999))
    weights = [each for each in token if each.kind == "product"]
    attention = [each for each in token if each.kind == "attention"]
    d, ff, layers = spec.d_model, 11008, spec.n_layers
    parameters = layers * (4 * d * d + 3 * d * ff) + spec.vocab_size * d
    assert sum(each.flops for each in weights) == pytest.approx(2 * parameters)
    assert sum(each.memory_bytes for each in weights) == pytest.approx(parameters * 18 / 32, rel=0.01)
    assert sum(each.flops for each in attention) == layers * 4 * 1000 * d
    assert sum(each.memory_bytes for each in attention) == pytest.approx(layers * 2 * 2 * 1000 * d, rel=0.05)
    prompt = list(pass_operations(catalog, spec, SIZES, rows=256))
    many = sum(each.flops for each in prompt if each.layer is not None and each.kind == "product")
    assert many == pytest.approx(256 * sum(each.flops for each in weights if each.layer is not None))
    assert sum(each.memory_bytes for each in prompt if each.kind == "product") == pytest.approx(
        sum(each.memory_bytes for each in weights)
    )


def test_experts_are_read_as_often_as_they_are_chosen() -> None:
    catalog, spec = OLMOE
    one, many = (list(pass_operations(catalog, spec, SIZES, rows=rows)) for rows in (1, 256))
    experts = [sum(e.memory_bytes for e in each if "exps" in e.name) for each in (one, many)]
    assert experts[1] / experts[0] == pytest.approx(spec.n_experts / spec.n_experts_used, rel=0.01)


def test_roofline_says_what_binds() -> None:
    catalog, spec = LLAMA_7B
    limits = Limits(25e9, 300e9)
    token = list(pass_operations(catalog, spec, SIZES, position=100))
    points = roofline(((each, 2 * each.memory_bytes / 25e9) for each in token), limits)
    assert {point.binds for point in points} == {"memory"}
    assert all(point.share_of_limit == pytest.approx(0.5) for point in points)
    assert points[0].seconds == max(point.seconds for point in points)
    prompt = [
        each for each in pass_operations(catalog, spec, SIZES, rows=256, logits_rows=256) if each.kind == "product"
    ]
    assert {point.binds for point in roofline(((each, 1.0) for each in prompt), limits)} == {"computing"}
    assert limits.ridge == 12


@pytest.mark.parametrize(("model", "budget"), [(LLAMA_7B, 8), (LLAMA_7B, 3), (OLMOE, 2), (OLMOE, 8)])
def test_requests(model: tuple, budget: int) -> None:  # type: ignore[type-arg]
    def request(**more: int):  # type: ignore[no-untyped-def]
        sizes = {"prompt_tokens": 256, "decode_tokens": 128, **more}
        return predict_request(*model, plan(model, budget * GIB), SIZES, RATES, **sizes)

    short, long = request(), request(prompt_tokens=1024)
    assert long.prompt_s > 2 * short.prompt_s or short.prompt_bound == "disk"
    assert long.token_s > short.token_s, "later tokens see more"
    assert short.total_s == pytest.approx(short.prompt_s + 128 * short.token_s)
    assert request(prompt_tokens=0).prompt_s == 0 and request(depth=2048).token_s > short.token_s
    assert (short.decode_bound == "disk") == (short.disk_bytes_per_token > 0)
    fast = replace(RATES, disk_bytes_per_s=1e11)
    quick = predict_request(*model, plan(model, budget * GIB), SIZES, fast, prompt_tokens=256, decode_tokens=128)
    assert quick.total_s <= short.total_s


def test_this_machine_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.planning.rates._weight_bytes", lambda cache_bytes: 1 << 20)
    monkeypatch.setattr("edgerun.planning.disk_probe._PROBE_BYTES", 16 << 20)
    found = measure_device(tmp_path / "disk", threads=1, types=["Q4_0"], meter=EnergyMeter(None, "none"))
    assert found.kind == "measured" and list(found.products) == ["Q4_0"] and list(found.memory_bandwidth) == [1]
    assert found.attention is not None and found.launch_s > 0 and found.idle_w is None and not found.energy
    assert found.disk_sequential is not None and len(found.disk_random) == 4 and not list((tmp_path / "disk").iterdir())
    again = load_again(found.as_yaml())
    assert getattr(again, "kernels", "") == found.kernels and getattr(again, "cache_bytes", -1) == found.cache_bytes
    assert "/" not in found.as_yaml().replace("bytes/s", ""), "no path of this machine"
