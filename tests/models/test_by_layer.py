"""Numbers that differ from layer to layer, as files say them in arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.models.footprint import activation_bytes
from edgerun.models.plan import plan_of
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, tokens_of, write


def logits(path: Path, kernels) -> np.ndarray:
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        return decoder.forward(tokens_of(INSTANCES["llama"]), decoder.new_cache(64), logits="all")


def written(source: Path, target: Path, tensors: dict[str, np.ndarray], **metadata: object) -> Path:
    """The file again with other tensors and metadata (by the last part of its key)."""
    with open_gguf(source) as gguf, GgufWriter(target, gguf.architecture) as w:
        for key in gguf.metadata:
            if key != "general.architecture":
                value = metadata.get(key.rpartition(".")[2], gguf.metadata[key])
                changed = key.rpartition(".")[2] in metadata
                w.add(key, value, None if changed else gguf.metadata.kind(key)[0])
        for name, info in gguf.tensors.items():
            data = np.array(gguf.raw(name)).view(np.float32).reshape(info.shape)
            w.add_tensor(name, tensors.get(name, data), GgmlType.F32)
    return target


def test_a_wider_layer_whose_further_neurons_and_heads_are_silent_is_the_same_model(tmp_path, kernels):
    source = write(INSTANCES["llama"], tmp_path / "m.gguf")
    wider = {}
    with open_gguf(source) as gguf:
        for part, axis, more in (
            ("ffn_gate", 0, 64), ("ffn_up", 0, 64), ("ffn_down", 1, 64), ("attn_q", 0, 64), ("attn_output", 1, 64),
        ):  # fmt: skip
            name = f"blk.1.{part}.weight"
            data = np.array(gguf.raw(name)).view(np.float32).reshape(gguf.tensors[name].shape)
            if part == "attn_q":  # two heads of a kv head become four, of which the last two are silent
                data = np.concatenate([data[:32], data[:32] * 0, data[32:], data[32:] * 0])
            elif part == "attn_output":
                data = np.concatenate([data[:, :32], data[:, :32] * 0, data[:, 32:], data[:, 32:] * 0], axis=1)
            else:
                data = np.pad(data, [(0, more if axis == 0 else 0), (0, more if axis == 1 else 0)])
            wider[name] = data
    target = written(
        source,
        tmp_path / "w.gguf",
        wider,
        feed_forward_length=np.array([96, 160, 96], np.int32),
        head_count=np.array([4, 8, 4], np.int32),
        head_count_kv=2,
    )
    with open_gguf(target) as gguf:
        spec = load_spec(gguf)
        assert [layer.n_heads for layer in spec.layers] == [4, 8, 4]
        assert plan_of(spec)[1].tensors["ffn_up"].shape == (160, 64)
        assert activation_bytes(spec, 256) > activation_bytes(load_spec(open_gguf(source)), 256)
    np.testing.assert_allclose(logits(target, kernels), logits(source, kernels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (np.array([0, 1, 1, 0, 1, 0, 1], bool), [0, 12, 12, 0, 12, 0, 12]),
        (3, [12, 12, 0, 12, 12, 0, 12]),
        (0, [12] * 7),
        (None, [12] * 5 + [0, 12]),  # the family's: all but every sixth
    ],
)
def test_which_layers_have_a_window(tmp_path, pattern, windows):
    instance = INSTANCES["gemma3"]
    more = {} if pattern is None else {"attention.sliding_window_pattern": pattern}
    source = write(instance.__class__(**{**vars(instance), "metadata": {**instance.metadata, **more}}), tmp_path / "g")
    with open_gguf(source) as gguf:
        spec = load_spec(gguf)
        assert [layer.window for layer in spec.layers] == windows
        bases = {layer.rotation.base for layer in spec.layers if layer.window}
        assert bases == {10000.0}, "layers with a window turn by a base of their own"


def test_a_pattern_of_too_few_layers_is_refused(tmp_path):
    instance = INSTANCES["gemma3"]
    source = write(replace(instance, lies={"attention.sliding_window_pattern": np.array([1, 0], bool)}), tmp_path / "g")
    with open_gguf(source) as gguf, pytest.raises(FormatError, match="2 truths for 7 layers"):
        load_spec(gguf)
