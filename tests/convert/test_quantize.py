"""GGUF -> GGUF of another type."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgerun.cli.main import cli
from edgerun.convert import quantize_gguf
from edgerun.convert.tensors import QUANT_TYPES
from edgerun.errors import FormatError, NotFoundError, UsageError
from edgerun.events import Event, Progress
from edgerun.formats.gguf import GgmlType, GgufWriter, ValueKind, open_gguf
from edgerun.formats.quants import dequantize, quantize
from edgerun.hub import show

RNG = np.random.default_rng(11)
WEIGHTS = {
    "token_embd.weight": RNG.standard_normal((64, 256)).astype(np.float32),
    "blk.0.attn_norm.weight": RNG.standard_normal(256).astype(np.float32),
    "blk.0.attn_q.weight": RNG.standard_normal((256, 256)).astype(np.float32),
    "blk.0.attn_q.bias": RNG.standard_normal(256).astype(np.float32),
    "blk.0.ffn_gate_inp.weight": RNG.standard_normal((4, 256)).astype(np.float32),
    "blk.0.ffn_up_exps.weight": RNG.standard_normal((4, 32, 256)).astype(np.float32),
    "blk.0.ffn_down_exps.weight": RNG.standard_normal((4, 256, 32)).astype(np.float32),
    "output.weight": RNG.standard_normal((64, 256)).astype(np.float32),
}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def write_model(path: Path, *, leave_out: str = "") -> Path:
    with GgufWriter(path, "llama") as w:
        w.add("llama.block_count", 1)
        w.add("tokenizer.ggml.tokens", [b"a", b"\xff"])
        w.add("some.numbers", np.array([1, 2], np.int16))
        w.add("some.byte", 3, ValueKind.UINT8)
        w.add("general.file_type", 0)
        for name, array in WEIGHTS.items():
            if name != leave_out:
                w.add_tensor(name, array, GgmlType.F32)
        w.add_tensor("ids", np.arange(3, dtype=np.int32), GgmlType.I32)
    return path


# what llama-quantize takes where rows are no whole blocks (tensor_type_fallback)
FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q1_0": "Q4_0", "Q2_0": "Q4_0",
}  # fmt: skip


@pytest.mark.parametrize("type_", QUANT_TYPES)
def test_every_type(tmp_path: Path, type_: GgmlType) -> None:
    source = write_model(tmp_path / "in.gguf")
    report = quantize_gguf(source, tmp_path / "out.gguf", type_.name.lower())
    with open_gguf(tmp_path / "out.gguf") as g:
        floats_and_fine = {"Q6_K", "Q8_0", "F16", "BF16", "F32"}
        head = type_.name if type_.name in floats_and_fine else "Q8_0" if type_.name == "MXFP4" else "Q6_K"
        down = FALLBACKS.get(type_.name, type_.name)  # rows of 32
        expected = {
            "token_embd.weight": type_.name, "blk.0.attn_norm.weight": "F32",
            "blk.0.attn_q.weight": type_.name, "blk.0.attn_q.bias": "F32", "blk.0.ffn_gate_inp.weight": "F32",
            "blk.0.ffn_up_exps.weight": type_.name, "blk.0.ffn_down_exps.weight": down, "output.weight": head,
            "ids": "I32",
        }  # fmt: skip
        assert {name: info.type.name for name, info in g.tensors.items()} == expected
        assert [fallback.tensor for fallback in report.fallbacks] == (
            ["blk.0.ffn_down_exps.weight"] if down != type_.name else []
        )
        for name, array in WEIGHTS.items():
            stored = GgmlType[expected[name]]
            assert g.tensors[name].shape == array.shape
            assert (g.raw(name) == quantize(array, stored)).all()
        assert g.raw("ids").view("<i4").tolist() == [0, 1, 2]
        assert sum(report.types.values()) == report.n_tensors == len(g.tensors)
        assert report.n_bytes == g.n_bytes


@pytest.mark.parametrize("type_", QUANT_TYPES)
def test_rows_that_fit_no_block_are_f16(tmp_path: Path, type_: GgmlType) -> None:
    with GgufWriter(tmp_path / "in.gguf", "llama") as w:
        w.add_tensor("blk.0.attn_q.weight", np.ones((4, 24), np.float32), GgmlType.F32)
    quantize_gguf(tmp_path / "in.gguf", tmp_path / "out.gguf", type_)
    with open_gguf(tmp_path / "out.gguf") as g:
        used = g.tensors["blk.0.attn_q.weight"].type
    assert used is (type_ if type_.block_size == 1 else GgmlType.F16)


@pytest.mark.parametrize("type_", QUANT_TYPES)
def test_the_label_is_of_the_type(tmp_path: Path, type_: GgmlType) -> None:
    quantize_gguf(write_model(tmp_path / "in.gguf"), tmp_path / "out.gguf", type_)
    assert show(tmp_path / "out.gguf").quantisation.startswith(type_.name)


def test_the_help_lists_them_all() -> None:
    text = CliRunner().invoke(cli, ["quantize", "--help"]).stdout
    assert {type_.name for type_ in QUANT_TYPES} <= set(re.findall(r"[A-Z0-9_]+", text))


def test_types_for_trained_models_come_with_a_warning(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf")
    assert any("trained" in note for note in quantize_gguf(source, tmp_path / "q1.gguf", "Q1_0").notes)
    again = quantize_gguf(tmp_path / "q1.gguf", tmp_path / "again.gguf", "Q1_0")
    assert not any("trained" in note for note in again.notes)


@pytest.mark.parametrize(
    ("wanted", "cols", "neurons"),
    [("Q4_0", 64, "Q4_0"), ("Q4_K", 256, "Q4_K"), ("Q4_K", 64, "Q5_0"), ("BF16", 64, "BF16"), ("TQ1_0", 256, "TQ1_0")],
)
def test_neurons_have_the_type_that_others_have(tmp_path: Path, wanted: str, cols: int, neurons: str) -> None:
    with GgufWriter(tmp_path / "in.gguf", "llama") as w:
        w.add("llama.block_count", 1)
        w.add_tensor("token_embd.weight", WEIGHTS["token_embd.weight"], GgmlType.F32)
        w.add_tensor("blk.0.ffn_gate.weight", WEIGHTS["token_embd.weight"], GgmlType.F32)
        for name in ("blk.0.ffn_up", "blk.0.ffn_down_t"):
            w.add_tensor(f"{name}.weight", np.ascontiguousarray(WEIGHTS["token_embd.weight"][:, :cols]), GgmlType.F32)
    report = quantize_gguf(tmp_path / "in.gguf", tmp_path / "out.gguf", wanted)
    with open_gguf(tmp_path / "out.gguf") as g:
        types = {name: info.type.name for name, info in g.tensors.items()}
    assert types["blk.0.ffn_up.weight"] == types["blk.0.ffn_down_t.weight"] == neurons
    assert types["blk.0.ffn_gate.weight"] == wanted
    assert len(report.fallbacks) == (0 if wanted == neurons else 2)


def test_metadata_is_carried_over(tmp_path: Path) -> None:
    quantize_gguf(write_model(tmp_path / "in.gguf"), tmp_path / "out.gguf", GgmlType.Q8_0)
    with open_gguf(tmp_path / "in.gguf") as a, open_gguf(tmp_path / "out.gguf") as b:
        assert set(b.metadata) == set(a.metadata) | {"general.quantization_version"}
        for key in a.metadata:
            assert a.metadata.kind(key) == b.metadata.kind(key)
            if key != "general.file_type":
                assert np.array_equal(a.metadata[key], b.metadata[key])
        assert b.metadata["general.file_type"] == 7


def test_a_tied_embedding_is_the_head(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf", leave_out="output.weight")
    quantize_gguf(source, tmp_path / "out.gguf", "Q4_0")
    with open_gguf(tmp_path / "out.gguf") as g:
        assert g.tensors["token_embd.weight"].type is GgmlType.Q6_K


def test_quantised_files_are_quantised_again_with_a_note(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf")
    assert not quantize_gguf(source, tmp_path / "q8.gguf", "Q8_0").notes
    report = quantize_gguf(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0")
    assert "Q8_0 weights were quantised a second time" in report.notes[0]
    with open_gguf(tmp_path / "q4.gguf") as g, open_gguf(tmp_path / "q8.gguf") as q8:
        again = quantize(dequantize(q8.raw("blk.0.attn_q.weight"), GgmlType.Q8_0), GgmlType.Q4_0)
        assert (g.raw("blk.0.attn_q.weight") == again).all()
    quantize_gguf(tmp_path / "q8.gguf", tmp_path / "same.gguf", "Q8_0")
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_errors_leave_nothing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf")
    before = source.read_bytes()
    with pytest.raises(UsageError, match="another name"):
        quantize_gguf(source, source, "Q4_0")
    with pytest.raises(UsageError, match="does not quantise"):
        quantize_gguf(source, tmp_path / "out.gguf", "IQ2_XXS")
    with pytest.raises(UsageError, match="a directory"):
        quantize_gguf(source, tmp_path, "Q4_0")
    with pytest.raises(NotFoundError):
        quantize_gguf(tmp_path / "absent.gguf", tmp_path / "out.gguf", "Q4_0")

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_gguf(source, tmp_path / "out.gguf", "Q4_0", events=interrupt)
    assert files_in(tmp_path) == [source]
    assert source.read_bytes() == before


def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    rows = np.zeros((1024, 1024), np.float32)
    with GgufWriter(tmp_path / "in.gguf", "llama") as w:
        w.add_tensor("token_embd.weight", lambda: (rows for _ in range(32)), GgmlType.F32, (32 * 1024, 1024))
    tracemalloc.start()
    try:
        quantize_gguf(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 80 << 20, f"{peak_bytes >> 20} MiB for a tensor of 128 MiB"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_the_files_fault(tmp_path: Path, number: float) -> None:
    bad = np.ones((4, 64), np.float32)
    bad[2, 5] = number
    with GgufWriter(tmp_path / "a.gguf", "llama") as w:
        w.add_tensor("token_embd.weight", bad, GgmlType.F32)
    with pytest.raises(FormatError, match="token_embd.weight"):
        quantize_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0")
    assert not (tmp_path / "b.gguf").exists()
