"""A tiny random instance of every family, listed by what is special about it: `instance.py` says what one is,
`writing.py` writes its file."""

from __future__ import annotations

from pathlib import Path

from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.models import load_spec
from edgerun.models.spec import ModelSpec
from tests.models.instances.alike import ALIKE
from tests.models.instances.attention import ATTENTION
from tests.models.instances.dense import DENSE
from tests.models.instances.instance import TOKENS, VOCAB, Instance
from tests.models.instances.latent import LATENT
from tests.models.instances.mixtures import MIXTURES
from tests.models.instances.plain import BY_LAYER, PLAIN, QUANTISED, SPARSE
from tests.models.instances.recurrent import RECURRENT
from tests.models.instances.said import SAID
from tests.models.instances.streams import STREAMS
from tests.models.instances.writing import metadata_of, shapes_of, spec_of, tokens_of, write

__all__ = [
    "BY_LAYER",
    "INSTANCES",
    "SPARSE",
    "TOKENS",
    "VOCAB",
    "Instance",
    "metadata_of",
    "open_instance",
    "shapes_of",
    "spec_of",
    "tokens_of",
    "write",
]

INSTANCES = {
    instance.name: instance
    for instance in PLAIN
    + DENSE
    + MIXTURES
    + ATTENTION
    + LATENT
    + RECURRENT
    + STREAMS
    + SAID
    + ALIKE
    + QUANTISED
    + SPARSE
    + BY_LAYER
}


def open_instance(name: str, directory: Path) -> tuple[GgufFile, ModelSpec]:
    """The instance's file in `directory`, written if nobody has, and its numbers."""
    path = directory / f"{name}.gguf"
    if not path.exists():
        write(INSTANCES[name], path)
    gguf = open_gguf(path)
    return gguf, load_spec(gguf)
