"""One gate to the kernels: no weight has an address unless its bytes are those of its shape and type."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgerun
from edgerun.errors import UsageError
from edgerun.formats.gguf import GgmlType, open_gguf
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.interface import Expert, Matrix, Neurons
from edgerun.kernels.layout import layout_bytes
from edgerun.models import load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from edgerun.weights.packing import write_pack
from tests.kernels.blocks import random_blocks
from tests.models.instances import INSTANCES, write

LAYOUTS = ("gguf", "rows4", "rows8", "rows16")
ROWS, COLS = 21, 512


def bytes_of(name, type, rows=ROWS, cols=COLS):
    memory = np.zeros(layout_bytes(name, type, rows, cols), np.uint8)
    return memory.reshape(rows, -1) if name == "gguf" else memory


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("type", FORMATS, ids=lambda t: t.name)
def test_only_a_true_triple_becomes_a_matrix(name, type):
    memory = bytes_of(name, type)
    matrix = Matrix(ROWS, COLS, type, name, memory)
    assert matrix.address == memory.ctypes.data
    longer = np.zeros(memory.size + 1, np.uint8)
    wrong = [
        (ROWS * 2, COLS, type, name, memory),
        (ROWS - 17, COLS, type, name, memory),
        (0, COLS, type, name, memory[:0]),
        (-ROWS, -COLS, type, name, memory),
        (ROWS, COLS + 256, type, name, memory),
        (ROWS, COLS - 1, type, name, memory),
        (ROWS, COLS, GgmlType.F64, name, memory),
        (ROWS, COLS, type, "r0", memory),
        (ROWS, COLS, type, "r-8", memory),
        (ROWS, COLS, type, "striped", memory),
        (ROWS, COLS, type, name, longer),
        (ROWS, COLS, type, name, longer[: memory.size - 1]),
        (ROWS, COLS, type, name, memory.view(np.int8)),
        (ROWS, COLS, type, name, np.zeros(2 * memory.size, np.uint8)[::2]),
        (ROWS, COLS, type, name, memory.tobytes()),
        (float(ROWS), COLS, type, name, memory),
    ]
    for arguments in wrong:
        with pytest.raises(UsageError):
            Matrix(*arguments)
    for changes in ({"rows": ROWS * 2}, {"cols": COLS * 2}, {"data": longer}):
        with pytest.raises(UsageError):
            replace(matrix, **changes)
    with pytest.raises(TypeError):
        Matrix(ROWS, COLS, type, name, memory, 4096)  # an address is never given, only found


def matrix(kernels, rows, cols, type=GgmlType.Q8_0):
    return kernels.pack(random_blocks(np.random.default_rng(0), rows, cols, type), type, cols)


def test_only_matrices_that_fit_become_an_expert(kernels):
    gate, up, down = matrix(kernels, 96, 64), matrix(kernels, 96, 64), matrix(kernels, 64, 96)
    Expert(0, gate, up, down)
    for wrong in (
        (matrix(kernels, 32, 64), up, down),
        (gate, matrix(kernels, 32, 64), down),
        (gate, matrix(kernels, 96, 32), down),
        (gate, up, matrix(kernels, 64, 64)),
        (gate, up, matrix(kernels, 32, 96)),
    ):
        with pytest.raises(UsageError, match="expert 0"):
            Expert(0, *wrong)


def test_experts_of_another_size_are_not_computed_together(kernels):
    """Launches are laid out by the first: each must be as large as it says."""
    small, large = (
        Expert(i, matrix(kernels, ff, 64), matrix(kernels, ff, 64), matrix(kernels, 64, ff))
        for i, ff in enumerate((32, 96))
    )
    x = np.ones((1, 64), np.float32)
    slots = [np.array([i], np.int32) for i in range(2)]
    rows = [np.zeros(1, np.int32)] * 2
    alone = np.zeros((2, 64), np.float32)
    for i, expert in enumerate((small, large)):
        kernels.experts_ffn([expert], kernels.activations(x), rows[:1], slots[i : i + 1], "silu", alone)
    for order in ((small, large), (large, small)):
        where = [slots[expert.id] for expert in order]
        out = np.zeros((2, 64), np.float32)
        try:
            kernels.experts_ffn(order, kernels.activations(x), rows, where, "silu", out)
        except UsageError:
            continue
        np.testing.assert_allclose(out, alone, rtol=1e-3, atol=1e-2)
    with pytest.raises((UsageError, IndexError)):
        kernels.experts_ffn([small], kernels.activations(x), rows[:1], [np.array([2], np.int32)], "silu", alone)


def test_only_rows_that_are_there_become_neurons():
    memory = np.zeros((5, 2 * 34), np.uint8)
    ids, slots = np.array([1, 7], np.int32), np.array([4, 0], np.int32)
    Neurons(ids, slots, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32)
    for wrong in (
        (ids, slots[:1], memory, GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids, slots + 1, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids, slots - 1, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids - 2, slots, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids.astype(np.int64), slots, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids, slots, memory, GgmlType.Q8_0, GgmlType.Q8_0, 64),
        (ids, slots, memory, GgmlType.Q8_0, GgmlType.F16, 32),
        (ids, slots, memory[:, :67], GgmlType.Q8_0, GgmlType.Q8_0, 32),
        (ids, slots, memory[::2], GgmlType.Q8_0, GgmlType.Q8_0, 32),
    ):
        with pytest.raises(UsageError):
            Neurons(*wrong)


def test_neurons_beyond_the_gate_are_refused(kernels):
    memory = np.zeros((5, 2 * 34), np.uint8)
    ids = np.array([1, 7], np.int32)
    neurons = Neurons(ids, ids % 5, memory, GgmlType.Q8_0, GgmlType.Q8_0, 32)
    x, h = np.ones((1, 32), np.float32), np.ones((1, 7), np.float32)
    with pytest.raises((UsageError, IndexError)):
        kernels.neurons_up(np.ones((1, 7), np.float32), kernels.activations(x), neurons, "relu", h)
    with pytest.raises((UsageError, IndexError)):
        kernels.neurons_down(h, neurons, np.zeros((1, 32), np.float32))


def modules():
    root = Path(edgerun.__file__).parent
    return {str(path.relative_to(root)): ast.parse(path.read_text()) for path in root.rglob("*.py")}


def calls(tree, name):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")) == name
    ]


def test_there_is_no_other_way_to_the_kernels():
    """Matrices are made by kernels alone, their address is found by themselves, and weights' addresses are taken from
    matrices: stores, prompt backends and converters handle no address."""
    trees = modules()
    assert {path for path, tree in trees.items() if calls(tree, "Matrix")} == {
        "kernels/reference.py",
        "kernels/packer.py",
    }
    for path, tree in trees.items():
        text = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if path.startswith(("weights/", "prefill/", "api/", "engine/", "convert/", "hub/", "formats/", "planning/")):
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not names & {"address", "ctypes", "__array_interface__", "data_as"}, path
            assert "ctypes" not in text or path in _OWN_MEMORY, path
        if path.startswith(("weights/", "prefill/", "models/", "kernels/")) and path != "kernels/interface.py":
            assert not calls(tree, "__setattr__") and not calls(tree, "__new__"), path
        if not path.startswith("kernels/"):
            assert not {"launcher", "_launcher"} & {
                node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            }
            assert not calls(tree, "run_program") or path == "models/replay.py", path


_OWN_MEMORY = {"weights/flash.py", "weights/arena.py"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["qwen3moe-small-Q4_0", "llama-Q8_0", "relu-Q8_0"])
def test_every_store_goes_through_the_gate(tmp_path, kernels, name, packed, monkeypatch):
    """Resident, streamed and from a pack file: each matrix and each batch of neurons was checked."""
    checked, post = set(), {}
    for kind in (Matrix, Expert, Neurons):
        post[kind] = kind.__post_init__

        def check(self, kind=kind):
            post[kind](self)
            checked.add(id(self))
            keep.append(self)

        monkeypatch.setattr(kind, "__post_init__", check)
    keep = []
    with open_gguf(write(INSTANCES[name], tmp_path / "m.gguf")) as gguf:
        spec = load_spec(gguf)
        if packed:
            write_pack(gguf, spec, kernels)
        stores = [ResidentStore(gguf, spec, kernels)]
        if spec.n_experts:
            stores.append(StreamedExpertStore(gguf, spec, kernels, slots=6, wave_tokens=8))
        else:
            stores.append(
                StreamedLayerStore(gguf, spec, kernels, pinned=[0], wave_tokens=8, neuron_slots=40 * spec.sparse)
            )
        for store in stores:
            found = [store.head()]
            for layer in range(spec.n_layers):
                some = np.array([0, 2, 3], np.int32)
                with store.layer(layer) as lent:
                    found += lent.matrices.values()
                if spec.n_experts:
                    with store.experts(layer, some) as batches:
                        experts = [each for batch in batches for each in batch]
                    found += [*experts, *(m for e in experts for m in (e.gate, e.up, e.down))]
                if spec.sparse:
                    with store.neurons(layer, some) as batches:
                        for batch in batches:
                            batch.rest()
                            found.append(batch.every)
            store.close()
            assert {id(each) for each in found} <= checked
