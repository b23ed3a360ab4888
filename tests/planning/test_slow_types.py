"""What is said to have kernels has them, and a file without is announced wherever a user would look."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgerun.api import LLM
from edgerun.api.planning import plan_model, slow_types_of
from edgerun.cli.doctor import _slow
from edgerun.cli.main import cli
from edgerun.events import Notice
from edgerun.formats.gguf import GgmlType, GgufWriter, TensorInfo
from edgerun.formats.gguf.types import FILE_TYPES
from edgerun.formats.quants import DEQUANTIZERS
from edgerun.hub import show
from edgerun.kernels import kernel_names, load_sizes
from edgerun.kernels.formats import FORMATS
from edgerun.planning.slow_types import slow_types, slow_types_notice
from tests.models.instances import Instance, write


@pytest.mark.parametrize("type", DEQUANTIZERS, ids=lambda type: type.name)
def test_the_kernels_agree(kernels, type):
    """`has_kernels` is what the kernels do with a matrix of the type."""
    packed = kernels.pack(np.full((16, type.row_bytes(256)), 17, np.uint8), type, 256)
    sizes = load_sizes(kernels.name)
    assert sizes.has_kernels(type) == (packed.layout != "gguf")
    assert packed.n_bytes == sizes.packed_bytes(type, 16, 256) == kernels.packed_bytes(type, 16, 256)


@pytest.fixture
def no_q5_1(monkeypatch):
    """Every type has kernels; here Q5_1 has none."""
    monkeypatch.delitem(FORMATS, GgmlType.Q5_1)
    monkeypatch.delitem(kernel_names.MATRIX_KERNELS, GgmlType.Q5_1)


class Few:
    """Kernels of two types."""

    def has_kernels(self, type):
        return type in (GgmlType.Q4_0, GgmlType.F32)


MATRICES = st.dictionaries(
    st.sampled_from(["token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "norm"]),
    st.tuples(st.sampled_from(list(DEQUANTIZERS)), st.integers(1, 9)),
)


@given(MATRICES)
def test_shares_by_hand(given):
    tensors = {
        name: TensorInfo(name, (256,) if name == "norm" else (rows, 256), type, 0, None, 0)
        for name, (type, rows) in given.items()
    }
    counted = {
        name: info
        for name, info in tensors.items()
        if name != "norm" and not (name == "token_embd.weight" and "output.weight" in tensors)
    }
    total = sum(prod(info.shape) for info in counted.values())
    sizes = Few()
    got = slow_types(tensors, sizes)
    for type in DEQUANTIZERS:
        share = sum(prod(info.shape) for info in counted.values() if info.type is type)
        if share and not sizes.has_kernels(type):
            assert got.pop(type.name) == pytest.approx(share / total)
    assert not got
    assert bool(slow_types_notice(tensors, sizes)) == bool(slow_types(tensors, sizes))


def test_a_slow_file_is_announced(tmp_path, no_q5_1, kernels):
    slow = write(Instance("slow", "llama", GgmlType.Q5_1), tmp_path / "slow.gguf")
    fast = write(Instance("fast", "llama", GgmlType.Q8_0), tmp_path / "fast.gguf")
    assert slow_types_of(slow)[0] == {"Q5_1": pytest.approx(1.0)}
    assert slow_types_of(fast) == ({}, "")
    plan = plan_model(slow, context=64)
    assert any(name.startswith("Q5_1 x ") for name in plan.rates.products)
    assert plan.as_dict()["slow_types"] == slow_types_of(slow)[0]
    assert not plan_model(fast, context=64).slow_notice


def labelled(path, file_type, types=(GgmlType.Q8_0, GgmlType.Q4_0)):
    """A file with this `general.file_type` of a large and a small matrix."""
    with GgufWriter(path, "llama") as writer:
        if file_type is not None:
            writer.add("general.file_type", file_type)
        for number, (type, rows) in enumerate(zip(types, (8, 4), strict=True)):
            writer.add_tensor(f"t{number}", np.zeros((rows, type.row_bytes(256)), np.uint8), type)
    return show(path).quantisation


@pytest.mark.parametrize("number", FILE_TYPES)
def test_the_label_is_what_the_file_was_made_as(tmp_path, number):
    assert labelled(tmp_path / "m.gguf", number) == FILE_TYPES[number]
    assert labelled(tmp_path / "m.gguf", number | 1024) == FILE_TYPES[number]


@pytest.mark.parametrize("said", [None, 4, 999, "Q4_K_M", True, 1.5])
def test_without_a_word_the_label_is_where_the_bytes_are(tmp_path, said):
    assert labelled(tmp_path / "m.gguf", said) == "Q8_0"
    assert labelled(tmp_path / "m.gguf", said, (GgmlType.Q2_K, GgmlType.F32)) == "F32"


def test_the_user_is_told(tmp_path, no_q5_1):
    slow = write(Instance("slow", "llama", GgmlType.Q5_1), tmp_path / "slow.gguf")
    fast = write(Instance("fast", "llama", GgmlType.Q8_0), tmp_path / "fast.gguf")
    for path, told in ((slow, True), (fast, False)):
        said: list[object] = []
        LLM(path, context=64, events=said.append).close()
        notices = [event.text for event in said if isinstance(event, Notice)]
        assert any("Q5_1 (100 % of the weights) has no kernels here" in text for text in notices) == told
        shown, planned = (CliRunner().invoke(cli, [command, str(path)]).stdout for command in ("show", "plan"))
        assert ("slow here" in shown, "slow here" in planned) == (told, told)
        assert ("Q5_1" in _slow(path, "auto")) == told, "for doctor"
    assert _slow(tmp_path / "none.gguf", "auto").endswith("no such file")
