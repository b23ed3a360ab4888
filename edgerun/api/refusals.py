"""What of edgerun is refused to a model, from its header: so that it is known before somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgerun.api.weights import kv_options
from edgerun.errors import FormatError, UnsupportedError
from edgerun.models import ModelSpec, load_spec
from edgerun.models.holdings import kv_bytes
from edgerun.models.share import why_whole
from edgerun.models.window import why_no_window


@dataclass(frozen=True)
class Refusals:
    """Why a model is refused each of these, in the words of who refuses it; "": it is not. loading: by edgerun itself.
    prompts: by prompt backends (`--prefill`); expert_prompts: their graphs of experts alone (`:experts`), of a mixture.
    devices: by several devices; same_tokens: there the same tokens on any number of them (`--same-tokens`). window:
    `--window`; kv: keys and values in q8_0 and q4_0 (`--kv`)."""

    loading: str = ""
    prompts: str = ""
    expert_prompts: str = ""
    devices: str = ""
    same_tokens: str = ""
    window: str = ""
    kv: str = ""

    def as_dict(self) -> dict[str, str]:
        """Those that there are, by name."""
        return {name: reason for name, reason in asdict(self).items() if reason}

    def lines(self) -> dict[str, str]:
        """As people read them: what is refused or, of the larger things, possible."""
        if self.loading:
            return {"runs": f"no: {self.loading}"}
        prompts = "kernels, or what `edgerun calibrate` finds"
        if self.expert_prompts:
            prompts += f"; experts on the kernels: {self.expert_prompts}"
        devices = f"yes, but tokens may differ with their number: {self.same_tokens}" if self.same_tokens else "yes"
        found = {
            "prompts on": f"kernels alone: {self.prompts}" if self.prompts else prompts,
            "several devices": f"no: {self.devices}" if self.devices else devices,
        }
        if self.window:
            found["--window"] = f"no: {self.window}"
        if self.kv:
            found["--kv"] = f"f16 alone: {self.kv}"
        return found


def refusals_of(path: Path) -> Refusals:
    """Of a model file. NotFoundError, ReadError."""
    from edgerun.formats.gguf import open_gguf

    with open_gguf(path) as gguf:
        try:
            spec = load_spec(gguf)
        except FormatError as error:
            return Refusals(loading=str(error))
    return refused_to(spec)


def refused_to(spec: ModelSpec) -> Refusals:
    """Of a model with these numbers and tensors."""
    from edgerun.cluster.shares import unit_counts
    from edgerun.prefill.segments import why_no_experts, why_unsupported

    prompts, devices = why_unsupported(spec), why_whole(spec)
    return Refusals(
        prompts=prompts,
        expert_prompts="" if prompts or not spec.n_experts else why_no_experts(spec),
        devices=devices,
        same_tokens="" if devices else _refusal(lambda: unit_counts(spec, spec.tensors)),
        window=why_no_window(spec),
        kv=_refusal(lambda: [kv_bytes(spec, 1, kv=kv_options(kept)) for kept in ("q8_0", "q4_0")]).removesuffix(
            "; use f16"
        ),
    )


def _refusal(attempt: Callable[[], object]) -> str:
    """What an UnsupportedError says, if there is one."""
    try:
        attempt()
    except UnsupportedError as error:
        return str(error)
    return ""
