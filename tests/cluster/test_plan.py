"""Which devices should run a model: by the plans of their shares and the links between them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from edgerun.api.cluster_plan import plan_cluster
from edgerun.cli.main import cli
from edgerun.cluster.links import Links, predict_s
from edgerun.cluster.plan import Choice, Model, choices, chosen
from edgerun.cluster.profiles import SUM_S, PlannedDevice, Profiles, read_profiles
from edgerun.errors import DoesNotFitError, FormatError, UsageError
from edgerun.kernels import load_sizes
from edgerun.models.reductions import reductions
from tests.models.instances import open_instance
from tests.planning.test_memory import LLAMA_7B, SIZES

GIB = 1 << 30
WIRE = Links(0.0003, 8e-9, 2e-5, True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def model(directory):
    gguf, spec = open_instance("llama-Q4_0", directory)
    with gguf:
        yield Model(spec, load_sizes("reference"), 128)


def device(name: str, rate: float, memory_bytes: int = GIB) -> PlannedDevice:
    return PlannedDevice(name, memory_bytes, rate, 100 * rate, 1e9)


def plan(model: Model, *rates: float, links: Links = WIRE) -> list:
    return choices(model, Profiles(tuple(device(str(i), rate) for i, rate in enumerate(rates)), links))


def test_slow_devices_on_quick_links_work_together_and_quick_ones_on_slow_links_alone(model):
    together = chosen(plan(model, 1e7, 1e7, 1e7, 1e7))
    assert together.kind == "tensor" and len(together.devices) == 4 and sum(together.parts) == pytest.approx(1)
    far = chosen(plan(model, 1e7, 1e7, links=Links(0.1, 1e-6, 1e-3, False)))
    assert far.kind == "alone"
    assert chosen(plan(model, 1e10, 1e10)).kind == "alone"
    assert chosen(plan(model, 1e9, 1e11)).devices == ("1",)  # not the head, but it alone is the fastest


def test_nothing_is_chosen_that_is_slower_than_one_device(model):
    rng = np.random.default_rng(0)
    for _ in range(30):
        rates = 10 ** rng.uniform(6, 10, int(rng.integers(1, 6)))
        links = Links(10 ** rng.uniform(-5, -2), 10 ** rng.uniform(-9, -6), 2e-5, bool(rng.integers(2)))
        found = plan(model, *rates, links=links)
        best = chosen(found)
        alone = min(choice.token_s for choice in found if choice.kind == "alone")
        assert best.runs and best.token_s <= alone
        assert best.kind == "alone" or best.token_s < 0.95 * alone


def test_better_links_and_more_devices_make_nothing_slower(model):
    """In its own model: what is chosen takes no longer when links get quicker, wider, or duplex, or a device comes."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        rates = (10 ** rng.uniform(6, 9, int(rng.integers(2, 5)))).tolist()
        links = Links(10 ** rng.uniform(-5, -2), 10 ** rng.uniform(-9, -6), 10 ** rng.uniform(-6, -3), False)
        took = chosen(plan(model, *rates, links=links)).token_s
        for better in (
            {"hop_s": links.hop_s / 3},
            {"byte_s": links.byte_s / 3},
            {"message_s": 0.0},
            {"is_duplex": True},
        ):
            assert chosen(plan(model, *rates, links=replace(links, **better))).token_s <= took / 0.95
        more = min(each.token_s for each in plan(model, *rates, 1e6, links=links) if each.runs)
        assert more <= min(each.token_s for each in plan(model, *rates, links=links) if each.runs)
        alone = min(each.token_s for each in plan(model, *rates, links=links) if each.kind == "alone")
        assert took <= alone  # never worth less than one device


@pytest.mark.parametrize("way", ["star", "mesh"])
def test_sums_take_what_the_formula_says(way, model):
    for choice in plan(model, 1e8, 1e8, 5e7):
        if choice.way != way:
            continue
        n, spec = len(choice.devices), model.spec
        sums = sum(predict_s(way, WIRE, n, 4 * (each.numbers + 1)) + SUM_S for each in reductions(spec, 1, n))
        others_logits = (1 - choice.parts[0]) * spec.vocab_size
        around = 2 * WIRE.hop_s + 4 * ((n - 1) * spec.d_model + others_logits) * WIRE.byte_s
        assert choice.wire_s == pytest.approx(sums + around)
        assert choice.token_s > choice.wire_s
        assert len(list(reductions(spec, 1, 2))) == 2 * spec.n_layers


def test_what_a_quota_leaves_of_a_processor_hides_the_wire(model):
    whole = [replace(device(str(i), 1e7), sum_s=1e-3) for i in range(2)]
    halves = [replace(each, quota=0.5) for each in whole]

    def token_s(devices: list[PlannedDevice], hop_s: float) -> float:
        links = Links(hop_s, 1e-12, 0.0, True)
        return min(each.token_s for each in choices(model, Profiles(tuple(devices), links)) if each.kind == "tensor")

    busy_s = token_s(whole, 1e-9)
    assert token_s(halves, 1e-9) == pytest.approx(busy_s, rel=1e-3)
    near, far = (busy_s * part / len(list(reductions(model.spec, 1, 2))) for part in (0.2, 2.0))
    assert token_s(halves, near) == pytest.approx(busy_s, rel=1e-3)
    assert token_s(whole, near) > 1.15 * busy_s
    assert token_s(halves, far) == pytest.approx(token_s(whole, far) - 0.5 * busy_s, rel=1e-3)


def test_a_process_is_as_large_as_plan_takes_it_for(directory, model):
    """It was taken for larger, so that models were planned as streamed, or refused, that are all in memory."""
    path = directory / "llama-Q4_0.gguf"
    fits = replace(device("a", 1e7), memory_bytes=150 << 20)
    made = plan_cluster(path, Profiles((fits,), WIRE), context=128)
    larger = plan_cluster(path, Profiles((replace(fits, memory_bytes=GIB),), WIRE), context=128)
    assert made.best.token_s == pytest.approx(larger.best.token_s)


def test_who_has_the_quicker_disk_streams_more():
    model = Model(LLAMA_7B[1], SIZES, 512)

    def together(*disks: float) -> Choice:
        devices = tuple(PlannedDevice(str(i), GIB, 2e10, 3e11, disk) for i, disk in enumerate(disks))
        return next(each for each in choices(model, Profiles(devices, WIRE)) if len(each.parts) == 2 and each.way)

    even, uneven = together(3e8, 3e8), together(9e8, 3e8)
    assert even.parts == (0.5, 0.5) and uneven.parts[0] > 0.6
    assert uneven.token_s < 0.7 * even.token_s


def test_what_fits_nowhere_is_refused(model):
    none = Profiles((device("a", 1e8, 1 << 20), device("b", 1e8, 1 << 20)), WIRE)
    with pytest.raises(DoesNotFitError):
        choices(model, none)


FILE = """
head: b
link: {latency_ms: 0.5, mbit_s: 100, duplex: false}
devices:
  - {name: a, memory: 2G, weights_gb_s: 0.01, prompt_gop_s: 1}
  - {name: b, memory: 1G, weights_gb_s: 0.01, prompt_gop_s: 1, disk_gb_s: 2}
"""


def test_the_command(model, directory, tmp_path):
    path = tmp_path / "devices.yaml"
    path.write_text(FILE)
    profiles = read_profiles(path)
    assert [each.name for each in profiles.devices] == ["b", "a"] and profiles.devices[0].memory_bytes == GIB
    assert profiles.links == Links(0.0005, 8e-8, 2e-5, False)
    arguments = ["cluster", "plan", "--devices", str(path), str(directory / "llama-Q4_0.gguf")]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "every layer, star" in shown.output and "→" in shown.output
    said = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert said["choices"][said["best"]]["kind"] in ("alone", "tensor") and len(said["choices"]) == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head: b", "head: c"),
        ("head: b", "heads: b"),
        ("latency_ms: 0.5", "latency_ms: -1"),
        ("latency_ms: 0.5", "latency_ms: .nan"),
        ("latency_ms", "delay"),
        ("duplex: false", "duplex: 3"),
        ("memory: 2G,", "memory: 2G, quota: 1.5,"),
        ("memory: 2G", "memory: much"),
        ("memory: 2G", "memory: [2]"),
        ("name: a", "name: b"),
        ("weights_gb_s: 0.01, prompt_gop_s: 1}", "prompt_gop_s: 1}"),
        ("devices:", "devices: 3\nothers:"),
        (FILE, "- 1"),
        (FILE, "{"),
    ],
)
def test_other_files_are_refused(old, new, tmp_path):
    path = tmp_path / "devices.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(FormatError):
        read_profiles(path)
    with pytest.raises(UsageError):
        read_profiles(tmp_path / "none.yaml")
