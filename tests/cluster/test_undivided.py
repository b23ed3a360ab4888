"""Models that are not divided yet are refused with the reason: by a plan, by a head, and by a worker."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner

from edgerun.api.cluster import load_clustered
from edgerun.cli.main import cli
from edgerun.cluster import shard_file
from edgerun.cluster.cuts import whole
from edgerun.cluster.local import local_group
from edgerun.cluster.shard_file import ShardSource
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.worker import RankOptions, work
from edgerun.errors import UnsupportedError
from edgerun.models.share import LayerShare, Share, why_whole
from edgerun.options import load_options
from tests.cluster.in_threads import one_thread, resident
from tests.cluster.thread_assembly import ThreadAssembly
from tests.models.instances import open_instance

DEVICES = """
head: a
link: {latency_ms: 0.3, mbit_s: 1000, duplex: true}
devices:
  - {name: a, memory: 2G, weights_gb_s: 0.01, prompt_gop_s: 1}
  - {name: b, memory: 2G, weights_gb_s: 0.01, prompt_gop_s: 1}
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("falcon-h1", "two mixers side by side"),
        ("command-r", "attention and feed-forward side by side"),
    ],
)
def test_it_is_said_why(name, why, tmp_path, monkeypatch):
    gguf, spec = open_instance(name, tmp_path)
    with gguf:
        wanted = f"a {spec.architecture} cannot be divided among devices yet: it has {why}"
        assert why_whole(spec) == wanted
        # A head that divides it all the same: the worker, which computes what it is given, refuses.
        monkeypatch.setattr(shard_file, "cuts_of", lambda spec, share: [whole(*each) for each in spec.tensors.items()])
        layers = (LayerShare(range(1), range(1)),) * spec.n_layers
        shard = tmp_path / "shard.gguf"
        ShardSource(gguf, spec, Share(layers, range(spec.vocab_size), False)).write(shard)
    with pytest.raises(UnsupportedError, match=wanted):
        work(local_group(2)[1], shard, msgspec.msgpack.encode(RankOptions(64)), resident(one_thread))
    path = tmp_path / f"{name}.gguf"
    for rates in ([1.0], []):  # also while nobody else is there
        assembly = ThreadAssembly(rates, tmp_path, resident(one_thread))
        with pytest.raises(UnsupportedError, match=wanted):
            load_clustered(path, load_options({}), assembly, own_rate=1.0, shards=ShardStore(tmp_path))
        assert not assembly.groups
    devices = tmp_path / "devices.yaml"
    devices.write_text(DEVICES)
    shown = CliRunner().invoke(cli, ["cluster", "plan", "--devices", str(devices), str(path), "--json"])
    assert shown.exit_code == 0 and wanted in shown.stderr
    said = json.loads(shown.stdout)
    assert said["why_whole"] == wanted and {each["kind"] for each in said["choices"]} == {"alone", "pipeline"}


def test_what_can_be_divided_has_no_reason(tmp_path):
    for name in ("llama", "olmoe", "bitnet", "gemma3", "starcoder2", "deepseek2"):
        gguf, spec = open_instance(name, tmp_path)
        with gguf:
            assert why_whole(spec) == ""
