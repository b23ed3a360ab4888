"""What a model would do on several devices, before there is a group of them, or before they are bought."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from edgerun.api.loading import choose_context
from edgerun.api.planning import model_header
from edgerun.api.weights import kv_options
from edgerun.cluster.plan import PROMPT_TOKENS, Choice, Model, choices, chosen
from edgerun.cluster.profiles import Profiles
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_sizes
from edgerun.models import load_spec
from edgerun.models.share import why_whole
from edgerun.options import PLAN_NAMES, PlanKeywords, load_options
from edgerun.planning.process import elsewhere_bytes


@dataclass(frozen=True)
class ClusterPlan:
    """All ways that would do, the fastest first, and which to take. why_whole: why no group of devices is among them;
    "" where the model can be divided."""

    name: str
    context: int
    found: tuple[Choice, ...]
    best: Choice
    why_whole: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": self.name,
            "context": self.context,
            "prompt_tokens": PROMPT_TOKENS,
            "best": self.found.index(self.best),
            "why_whole": self.why_whole,
            "choices": [{**vars(choice), "tok_s": choice.tok_s} for choice in self.found],
        }


def plan_cluster(model: str | Path, profiles: Profiles, **options: Unpack[PlanKeywords]) -> ClusterPlan:
    """Plan a model from its header for devices of these profiles. Options as of `plan_model`. DoesNotFitError where
    nothing would do, and what `plan_model` raises for names and files."""
    given = load_options(options, PLAN_NAMES)
    with model_header(model, given.events) as (path, _), open_gguf(path) as gguf:
        spec = load_spec(gguf)
        n_context = choose_context(given.context, spec, gguf.metadata)
        process_bytes = elsewhere_bytes(gguf.metadata)
        wanted = Model(spec, load_sizes(given.kernels), n_context, kv_options(given.kv), process_bytes)
        found = choices(wanted, profiles)
        return ClusterPlan(path.stem, n_context, tuple(found), chosen(found), why_whole(spec))
