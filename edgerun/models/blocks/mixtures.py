"""Mixtures of experts as families and numbers say."""

from __future__ import annotations

from edgerun.kernels.routing import Routing
from edgerun.models.blocks.beside import Beside
from edgerun.models.blocks.dense import dense_of
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.blocks.router import Router, most_ahead
from edgerun.models.blocks.shared_expert import SharedExpert
from edgerun.models.spec import ModelSpec


def mixture_of(spec: ModelSpec, layer: int) -> Mixture:
    """A layer's experts."""
    family, numbers = spec.family, spec.layers[layer]
    routing = Routing(
        spec.router,
        numbers.n_experts_used,
        spec.renormalise,
        spec.expert_scale,
        spec.expert_groups,
        spec.expert_groups_used,
    )
    layer_units = spec.units(layer)
    units = None if layer_units is None else layer_units.feed_forward
    later = tuple(each for each in range(layer + 1, spec.n_layers) if spec.layers[each].n_experts)
    router = Router(
        spec.d_model,
        numbers.n_experts,
        routing,
        spec.norm_eps,
        early=family.early_router,
        rescaled=family.dense_beside,
        later=later[: most_ahead(numbers.n_experts, numbers.n_experts_used, numbers.d_ff_expert)],
    )
    shared = SharedExpert(
        spec.d_model,
        numbers.d_ff_shared,
        spec.activation,
        weighted=family.shared_gate,
        gated=family.gated,
        fused=numbers.fused_shared,
        units=units,
    )
    return Mixture(
        d_model=spec.d_model,
        d_ff=numbers.d_ff_expert,
        units=units,
        router=router,
        activation=spec.activation,
        eps=spec.norm_eps,
        shared=shared if numbers.d_ff_shared else None,
        held=range(numbers.n_experts) if spec.shard is None else spec.shard.experts[layer],
        norm="pre_ffw_norm_2" if family.dense_beside else family.ffn_norm,
        norm_kind=family.norm,
        gated=family.gated,
        fused=numbers.fused_experts,
        latent=spec.expert_latent,
        weighted_inputs=family.weighted_inputs,
        beside=_beside(spec, layer) if family.dense_beside else None,
        post_norm="post_ffw_norm" if family.post_norms else "",
        post_eps=family.post_norm_eps,
        factor=spec.residual_scale,
    )


def _beside(spec: ModelSpec, layer: int) -> Beside:
    return Beside(dense_of(spec, layer, "post_ffw_norm_1"), "post_ffw_norm_2")
