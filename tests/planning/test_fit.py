"""Refusing what does not fit, with the number that would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

from edgerun.device import MemoryLimits
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import open_gguf
from edgerun.planning import Fit, check_fit, estimate_memory

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Shape:
    n_layers: int = 2
    n_kv_heads: int = 2
    head_dim_k: int = 16
    head_dim_v: int = 16
    d_model: int = 64
    vocab_size: int = 299


def test_estimate_of_a_tiny_model(tmp_path: Path) -> None:
    with open_gguf(make_tiny_model(tmp_path / "tiny.gguf")) as gguf:
        fit = estimate_memory(gguf.tensors, Shape(), context=512)
        embedding = gguf.tensors["token_embd.weight"].n_bytes
        assert fit.weights_bytes == gguf.n_bytes - embedding  # rows are read from the file
        tied = {name: info for name, info in gguf.tensors.items() if name != "output.weight"}
        assert estimate_memory(tied, Shape(), 512).weights_bytes == sum(i.n_bytes for i in tied.values())
    assert fit.kv_bytes == 2 * 512 * 2 * (16 + 16) * 2
    assert fit.total_bytes == fit.weights_bytes + fit.kv_bytes + fit.overhead_bytes


def test_enough_is_enough() -> None:
    check_fit("m", Fit(GIB, MIB, MIB), MemoryLimits(4 * GIB, GIB + 2 * MIB), 4096)


@pytest.mark.parametrize(
    ("fit", "memory", "advice"),
    [
        (Fit(GIB, 4 * GIB, 0), MemoryLimits(8 * GIB, 3 * GIB), "a context of 2048 would fit"),
        (Fit(4 * GIB, 0, 0), MemoryLimits(8 * GIB, 3 * GIB), "close other programs"),
        (Fit(9 * GIB, 0, GIB), MemoryLimits(8 * GIB, 7 * GIB), "at most 6 GiB"),
        (Fit(9 * GIB, 0, GIB), MemoryLimits(8 * GIB, GIB // 2), "take a smaller model"),
        (Fit(GIB, 0, 0), MemoryLimits(8 * GIB, GIB // 2, GIB, GIB // 2), "under this process's memory limit"),
    ],
)
def test_what_does_not_fit(fit: Fit, memory: MemoryLimits, advice: str) -> None:
    with pytest.raises(DoesNotFitError, match=re.escape(advice)) as caught:
        check_fit("model.gguf", fit, memory, 4096)
    assert "model.gguf needs" in str(caught.value)
    assert caught.value.exit_code == 4
