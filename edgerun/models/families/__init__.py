"""The families, declared: what differs between architectures, and nothing else. One file for each family of models.

Names are GGUF's `general.architecture`. To add one: a declaration, its file below, and rows in
tests/models/instances/. Optional tensors (biases, scales, `rope_freqs`) are used wherever a file has them and need
no declaration; tensors that are of no use to text are declared in `unused`, and a file with any others is refused.
"""

from edgerun.models.families import (
    afmoe,
    alike,
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
    internlm,
    lfm2,
    llama,
    minimax,
    mistral,
    muse,
    nemotron,
    olmo,
    phi,
    qwen,
    seed,
    smallthinker,
    smollm,
    ungated,
)
from edgerun.models.families.family import CHOICES, Family, NormKind, unused_tensors

__all__ = ["CHOICES", "FAMILIES", "Family", "NormKind", "unused_tensors"]

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
    **internlm.FAMILIES,
    **mistral.FAMILIES,
    **muse.FAMILIES,
    **seed.FAMILIES,
    **smollm.FAMILIES,
    **nemotron.FAMILIES,
    **ungated.FAMILIES,
    **alike.FAMILIES,
}
