"""What a family declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgerun.kernels.interface import Activation, RopeKind
from edgerun.kernels.routing import RouterKind

NormKind = Literal["rms", "layer"]

# Keys of metadata that mean something in some families' files only, as in llama.cpp.
MIXTURE = frozenset(("expert_weights_scale", "expert_weights_norm", "expert_gating_func"))
LOCAL_BASE = frozenset(("rope.freq_base_swa",))
LOGIT_CAP = frozenset(("final_logit_softcapping",))
ATTENTION_SCALE = frozenset(("attention.scale",))
LOG_MULTIPLIER = frozenset(("rope.scaling.yarn_log_multiplier",))
YARN_BETAS = frozenset(("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"))
CHOICES = MIXTURE | LOCAL_BASE | LOGIT_CAP | ATTENTION_SCALE | LOG_MULTIPLIER | YARN_BETAS | {"attn_logit_softcapping"}


@dataclass(frozen=True)
class Family:
    """What the one decoder must know beyond the numbers in the file."""

    rope: RopeKind
    activation: Activation = "silu"
    qk_norm: Literal["none", "head", "full"] = "none"  # RMSNorm of q and k: each head, or all heads together
    latent_attention: bool = False  # one vector of each position is key and value of all heads
    latent_rotation_grows: bool = False  # a yarn_log_multiplier takes from the rotation what it gives to scores
    qk_norm_by_file: bool = False  # some files of the family have none
    qk_norm_not_of: int = 0  # a mixture of so many experts has none
    qk_norm_after: bool = False  # of what is rotated already
    qk_norm_plain: bool = False  # without weights, of layers that are rotated
    v_norm: bool = False  # an RMSNorm without weights of each head
    v_from_k: bool = False  # a layer without attn_v takes what attn_k gives
    shares_kv: bool = False  # the last layers may read the keys and values of earlier ones
    own_kv: int = 0  # of a file that does not say: layers with their own; 0: all
    sinks: bool = False  # one more score of each head, whose share goes nowhere
    output_gate: Literal["none", "sigmoid", "softplus", "in_q"] = "none"  # in_q: sigmoid, of every head beside its q
    temperature: Literal["none", "said", "unrotated"] = "none"  # of late queries: by the file; of unrotated layers
    score_scale: float = 0.0  # of scores; 0: by the file, or head_dim ** -0.5
    softcaps: tuple[float, float] = (0.0, 0.0)  # of scores and of logits, of a file that says none; 0: there is none
    norm: NormKind = "rms"
    norm_biases: bool = False  # norms may have biases
    head_bias: bool = False  # so may the head
    pre_norms: bool = True  # before the mixer and before the feed-forward
    ffn_norm: str = "ffn_norm"  # name of the norm before the feed-forward
    parallel: bool = False  # one norm for both: x += mixer(h) + feed_forward(h)
    gated: bool = True  # feed-forwards and experts
    fused_gate_up: bool = False  # ffn_up holds gate, then up (others may have it so, by file)
    post_norms: bool = False  # a norm after attention and after the feed-forward, before the residual
    sub_norms: bool = False  # a norm before attn_output and before ffn_down
    post_norm_eps: float = 0.0  # of these; 0: the model's
    scaled_embedding: bool = False  # times sqrt(d_model)
    normed_embedding: bool = False  # through an RMSNorm without weights
    multipliers: bool = False  # embedding_scale, residual_scale and attention.scale are used
    default_multipliers: tuple[float, float, float] = (1.0, 1.0, 0.0)
    """Of a file without them: of the embedding; of the residual, over the root of the layers where it is not 1; of the
    logits, over d_model where it is not 0."""
    logits: Literal["plain", "times", "over"] = "plain"  # times or over logit_scale
    router: RouterKind = "softmax"
    sigmoid_sizes: tuple[tuple[int, int], ...] = ()  # layers and words of models whose router is that of sigmoids
    renormalise: bool = True  # the chosen experts' weights sum to one
    shared_gate: bool = False  # the shared expert is weighted by a gate
    no_mixture_up_to: int = 0  # files of models without a mixture may say so many experts
    weighted_inputs: bool = False  # experts' weights multiply what they are fed
    dense_beside: bool = False  # a mixture has a dense feed-forward too, and norms of each
    least_shared: int = 0  # shared experts of a file that does not say how many
    shared_times_count: bool = False  # expert_shared_feed_forward_length is of each shared expert, not of all
    expert_length: bool = True  # experts are expert_feed_forward_length wide, not feed_forward_length
    per_layer_inputs: bool = False  # every layer may be fed a part of the tokens' embeddings of its own
    per_layer_width: int = 0  # of that part, in a file that does not say
    streams: int = 1  # that the residual is, of a file that does not say (AltUp)
    laurel_rank: int = 0  # of a narrow way around attention; 0: there is none
    sparse_gates: int = 0  # of a file that does not say: so many layers' gates let only the largest 5 % through
    early_router: bool = False  # the router reads a layer's input before its attention: experts are known early
    window_pattern: int = 0  # n: of every n layers all but the last see only the sliding window; 0: none does
    window_after: bool = False  # of every n layers all but the first
    default_window: int = -1  # of a file that says none; 0: then all see all; -1: it must say one
    windows_of_layers: int = 0  # only a model of so many layers has windows; 0: any
    chunks: int = 0  # windows are stretches of so many positions from 0 on, whatever the file says; 0: they slide
    fixed_window: int = 0  # how many positions windows see in a file that says any number of them; 0: what it says
    of_layers: int = 0  # only models of so many layers are built so (Baichuan 13B tells positions by slopes); 0: any
    rotated: Literal["all", "windowed", "three_of_four", "fourths", "listed", "said", "none"] = "all"
    """Which layers are: windowed: all, if none has a window; three_of_four: all but the last of every four; fourths:
    where windows are usual all but one of every four, whichever layers have them; listed and said: by the file, for
    each or for all."""
    local_rope_plain: bool = False  # layers with a window are rotated unscaled, without the file's factors
    local_rope_base: float = 0.0  # base of the layers with a window, if the file says none; 0: as the others
    rope_alpha: bool = False  # the file may say one, by which the base grows
    sections: Literal["none", "blocks", "interleaved", "by_file"] = "none"
    """The file says which pairs turn by which of three positions, which are one in text. by_file: if it does,
    neighbours are no pairs (GLM's that see images)."""
    plain_local_factor: bool = False  # layers rotated unscaled are not multiplied by the file's attn_factor either
    window_everywhere: bool = False  # in a file that says a window all layers have it
    recurrence: Literal["none", "delta", "mamba"] = "none"  # what recurrent layers are
    mixers_beside: bool = False  # every layer has attention and a recurrence side by side
    single_blocks: bool = False  # a layer is a recurrence, attention or a feed-forward alone
    tiled_heads: bool = False  # heads of values take turns with the key heads; else neighbours share one
    short_convolutions: bool = False  # layers without key/value heads are short convolutions
    output_norm: str = "output_norm"  # what the norm before the head is called
    wide_scale_layers: int = 0  # a model of so many layers scales scores by d_model / heads, not head_dim
    says: frozenset[str] = frozenset()  # of CHOICES, what its files may say; in those of others it means nothing
    unused: Mapping[str, str] = field(default_factory=dict, hash=False)  # pattern of names -> what these tensors are


_EVERYWHERE = {  # what converters add to files of any family
    r"blk\.(0|[1-9][0-9]*)\.[a-z0-9_]+\.input_scale": "scales of activations for 4- and 8-bit float units",
    r"(v|a|s|mm|model\.vision_tower)\.[A-Za-z0-9_.]+": "the parts of the model that see images and hear",
    r"mtp\.[A-Za-z0-9_.]+": "layers that guess further tokens",
}

RERANKER = {r"cls(\.output)?\.(weight|bias)": "the head with which a reranker scores texts"}


def unused_tensors(family: Family) -> dict[str, str]:
    """Patterns of names that a file may have and text does not need -> what they are, for people."""
    return {**_EVERYWHERE, **family.unused}
