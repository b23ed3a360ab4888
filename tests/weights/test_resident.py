"""Weights in memory: every embedding row right, every wrong tensor named."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.events import Progress
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import dequantize
from edgerun.models import load_spec
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, write


def copy_without(source, target, changed=None, missing=()):
    """The file again, with tensors left out or replaced."""
    with open_gguf(source) as gguf, GgufWriter(target, gguf.architecture) as w:
        for key in gguf.metadata:
            if key != "general.architecture":
                w.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
        for name, info in gguf.tensors.items():
            if name in missing:
                continue
            data = dequantize(gguf.raw(name), info.type)
            w.add_tensor(name, (changed or {}).get(name, data), GgmlType.F32)
    return target


def test_rows_of_the_embedding(tmp_path, kernels):
    with open_gguf(write(INSTANCES["llama-Q4_0"], tmp_path / "m.gguf")) as gguf:
        spec, events = load_spec(gguf), []
        store = ResidentStore(gguf, spec, kernels, events=events.append)
        ids = np.array([5, 0, 95, 5], np.int32)
        whole = dequantize(gguf.raw("token_embd.weight"), gguf.tensors["token_embd.weight"].type)
        assert np.array_equal(store.embedding(ids), whole[ids])
        assert store.head().rows == spec.vocab_size
        done = [event.done for event in events if isinstance(event, Progress)]
        assert done == sorted(done)
        assert done[-1] == {event.total for event in events if isinstance(event, Progress)}.pop()


def test_experts_come_by_id(tmp_path, kernels):
    with open_gguf(write(INSTANCES["olmoe"], tmp_path / "m.gguf")) as gguf:
        store = ResidentStore(gguf, load_spec(gguf), kernels)
        with store.experts(1, np.array([1, 4, 7])) as batches:
            ready = [expert.id for batch in batches for expert in batch]
        assert ready == [1, 4, 7]


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "output_norm.weight", "blk.2.ffn_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path, name):
    source = write(INSTANCES["llama"], tmp_path / "a.gguf")
    with (
        open_gguf(copy_without(source, tmp_path / "b.gguf", missing=(name,))) as gguf,
        pytest.raises(FormatError, match=f"{name}.*missing"),
    ):
        load_spec(gguf)


def test_a_wrong_shape_is_named(tmp_path):
    source = write(INSTANCES["llama"], tmp_path / "a.gguf")
    changed = {"blk.0.ffn_up.weight": np.zeros((95, 64), np.float32)}
    with (
        open_gguf(copy_without(source, tmp_path / "b.gguf", changed)) as gguf,
        pytest.raises(FormatError, match=r"blk.0.ffn_up.weight is \(95, 64\)"),
    ):
        load_spec(gguf)


@pytest.mark.parametrize("name", ["llama-Q4_0", "olmoe"])
def test_matrices_that_lie_side_by_side_are_those_packed_alone(name, tmp_path, kernels):
    with open_gguf(write(INSTANCES[name], tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        store = ResidentStore(gguf, spec, kernels)
        seen = {}
        for layer in range(spec.n_layers):
            with store.layer(layer) as weights:
                seen |= {f"blk.{layer}.{part}.weight": [each] for part, each in weights.matrices.items()}
            if spec.n_experts:
                with store.experts(layer, np.arange(spec.n_experts, dtype=np.int32)) as batches:
                    experts = [each for batch in batches for each in batch]
                for part in ("gate", "up", "down"):
                    seen[f"blk.{layer}.ffn_{part}_exps.weight"] = [getattr(each, part) for each in experts]
        spans = []
        for tensor, matrices in seen.items():
            info = gguf.tensors[tensor]
            for i, matrix in enumerate(matrices):
                raw = gguf.rows(tensor, i * matrix.rows, (i + 1) * matrix.rows)
                alone = kernels.pack(raw, info.type, matrix.cols)
                assert np.array_equal(matrix.data, alone.data), tensor
                spans.append((matrix.address, matrix.address + matrix.n_bytes))
        assert len(seen) > 6
        assert all(end <= start for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False))
        assert all(start % 64 == 0 for start, _ in spans)
