"""Tiny models, and decoders whose prompts run on ONNX Runtime's CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.kernels import Kernels
from edgerun.models import Decoder, ModelSpec, load_spec
from edgerun.models.prompt import PromptBackend, on_backend
from edgerun.prefill.backend import OnnxBackend
from edgerun.prefill.build import BuiltModel, build_model
from edgerun.prefill.profile import profile_ranges
from edgerun.prefill.providers import device_named
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schemes import Scheme, scheme_named
from edgerun.prefill.sessions import Sessions
from edgerun.weights import ResidentStore
from tests.models.instances import (
    ALIKE,
    ATTENTION,
    DENSE,
    INSTANCES,
    LATENT,
    MIXTURES,
    RECURRENT,
    SAID,
    STREAMS,
    VOCAB,
    Instance,
    write,
)

_LATER = {
    "granite-plain",
    "erniemoe",
    "glm4moe",
    "mistral3",
    "qwen3vl",
}  # of the families that came later, some of each kind
_OTHERS = {i.name for i in (*DENSE, *MIXTURES, *RECURRENT, *ATTENTION, *LATENT, *STREAMS, *SAID, *ALIKE)} - _LATER
_F32 = {
    n: i
    for n, i in INSTANCES.items()
    if i.type.name == "F32" and not i.sparse and not i.taps and not i.recurrent and n not in _OTHERS
}
DENSE_F32 = [n for n, i in _F32.items() if not i.experts]
EXPERTS_F32 = [n for n, i in _F32.items() if i.experts]


@dataclass(frozen=True, eq=False)
class Model:
    """An open file and a decoder that has all of its weights."""

    gguf: GgufFile
    spec: ModelSpec
    decoder: Decoder

    def logits(self, ids: Sequence[int], decoder: Decoder | None = None) -> np.ndarray:
        """Of all tokens (n, vocab), on a cache of their own."""
        decoder = decoder or self.decoder
        out = decoder.forward(ids, decoder.new_cache(len(ids)), logits="all")
        assert out is not None
        return out

    def decoded(self, backend: PromptBackend | None, ids: Sequence[int], later: Sequence[int]) -> np.ndarray:
        """Logits (n + later, vocab) of a prompt on a backend (None: the kernels) and of tokens after it, one by one."""
        with on_backend(self.decoder, backend):
            cache = self.decoder.new_cache(len(ids) + len(later))
            rows = [self.decoder.forward(ids, cache, logits="all")]
            rows += [self.decoder.forward([token], cache) for token in later]
        return np.concatenate(rows)


def load(instance: Instance, path: Path, kernels: Kernels) -> Model:
    """Write and open an instance."""
    gguf = open_gguf(path if path.exists() else write(instance, path))
    spec = load_spec(gguf)
    return Model(gguf, spec, Decoder(spec, ResidentStore(gguf, spec, kernels), kernels))


def tokens(n: int, seed: int = 7) -> list[int]:
    """Some of the instances' vocabulary."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, n)]


def ranges_of(
    model: Model, scheme: Scheme, *, shadow: bool = True, rotated: bool = False, experts: bool = False
) -> list[LayerRanges]:
    """Seen on 120 tokens, where the scheme needs any."""
    if not scheme.quantises_activations:
        return [LayerRanges()] * model.spec.n_layers
    return profile_ranges(model.decoder, tokens(120), shadow=shadow, rotated=rotated, experts=experts)


def build(
    model: Model,
    folder: Path,
    scheme: str | Scheme = "fp32",
    sizes: Sequence[int] = (0,),
    *,
    shadow: bool = True,
    rotated: bool = False,
    experts: bool = False,
) -> BuiltModel:
    """A model's graphs: of any size, or of a ladder as static providers get it."""
    known = scheme if isinstance(scheme, Scheme) else scheme_named(scheme)
    ranges = ranges_of(model, known, shadow=shadow, rotated=rotated, experts=experts)
    return build_model(folder, model.gguf, model.spec, known, ranges, sizes, rotated=rotated, experts=experts)


def ort_backend(
    model: Model, built: BuiltModel, *, overlap: bool = True, least_tokens: int = 2, expert_rows: int = 8
) -> OnnxBackend:
    """`built` on the CPU; it runs static graphs as well."""
    device = device_named("ort")
    sizes_known = replace(device, kind=replace(device.kind, static=0 not in built.sizes))
    sessions = Sessions(built, sizes_known, threads=2)
    return OnnxBackend(model.spec, built, sessions, overlap=overlap, least_tokens=least_tokens, expert_rows=expert_rows)


@contextmanager
def attached(backend: OnnxBackend, decoder: Decoder) -> Iterator[OnnxBackend]:
    """The decoder's prompts run on the backend meanwhile."""
    with on_backend(decoder, backend):
        yield backend


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Size of the difference, as a share of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
