"""The families, declared: what differs between architectures, and nothing else. One file for each family of models.

Names are GGUF's `general.architecture`. To add one: a declaration, its file below, and rows in
tests/models/instances.py. Optional tensors (biases, scales, `rope_freqs`) are used wherever a file has them and need
no declaration; tensors that are of no use to text are declared in `unused`, and a file with any others is refused.
"""

from edgerun.errors import UnsupportedError
from edgerun.models.families import (
    afmoe,
    bailing,
    bitnet,
    cohere,
    deepseek,
    ernie,
    exaone,
    falcon,
    gemma,
    glm,
    gpt_oss,
    granite,
    hunyuan,
    lfm2,
    llama,
    minimax,
    nemotron,
    olmo,
    phi,
    qwen,
    smallthinker,
    ungated,
)
from edgerun.models.families.family import Family, NormKind, unused_tensors

__all__ = ["FAMILIES", "Family", "NormKind", "family_of", "unused_tensors"]

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **qwen.FAMILIES,
    **olmo.FAMILIES,
    **phi.FAMILIES,
    **gemma.FAMILIES,
    **smallthinker.FAMILIES,
    **bitnet.FAMILIES,
    **lfm2.FAMILIES,
    **falcon.FAMILIES,
    **gpt_oss.FAMILIES,
    **hunyuan.FAMILIES,
    **afmoe.FAMILIES,
    **bailing.FAMILIES,
    **cohere.FAMILIES,
    **deepseek.FAMILIES,
    **ernie.FAMILIES,
    **glm.FAMILIES,
    **granite.FAMILIES,
    **exaone.FAMILIES,
    **minimax.FAMILIES,
    **nemotron.FAMILIES,
    **ungated.FAMILIES,
}


def family_of(architecture: str) -> Family:
    """Raises UnsupportedError naming the known ones."""
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnsupportedError(f"the architecture {architecture!r} is not supported; edgerun runs {known}")
    return FAMILIES[architecture]
