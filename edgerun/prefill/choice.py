"""Which prompt backend: "auto", "kernels", or DEVICE[:SCHEME][:rotate][:no-shadow][:experts], as "ort-cpu:w8a8"."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgerun.errors import UsageError
from edgerun.models import ModelSpec
from edgerun.prefill.providers import Device, ProviderKind, device_named
from edgerun.prefill.schemes import Scheme, scheme_named
from edgerun.prefill.segments import weights_bytes

KERNELS = "kernels"


@dataclass(frozen=True)
class PromptChoice:
    """One way to run a prompt's dense products."""

    device: Device
    scheme: Scheme
    rotated: bool = False
    shadow: bool = True
    experts: bool = False  # those with many rows of a prompt too, not only what all tokens go through

    @property
    def text(self) -> str:
        """As the user names it."""
        more = (":rotate" if self.rotated else "") + ("" if self.shadow else ":no-shadow")
        more += ":experts" if self.experts else ""
        return f"{self.device.name}:{self.scheme.name}{more}"

    def copy_bytes(self, spec: ModelSpec) -> int:
        """What must have room beside the kernels' weights: a copy in memory, or mapped experts, which would take turns
        there; other mapped weights may come and go."""
        if not (self.device.copies_weights or self.experts):
            return 0
        return weights_bytes(spec, self.scheme, experts=self.experts)


def parse_choice(text: str) -> PromptChoice:
    """UsageError for what is unknown, or not on this machine."""
    name, *rest = text.split(":")
    device = device_named(name)
    flags = {"rotate", "no-shadow", "experts"}
    unknown = [each for each in rest[1:] if each not in flags]
    scheme = device.kind.schemes[0]
    if rest and rest[0] not in flags:
        scheme = rest[0]
    elif rest:
        rest = ["", *rest]
    if unknown:
        raise UsageError(f"unknown {unknown[0]!r} in {text!r}; after the scheme may come rotate, no-shadow and experts")
    wanted = fit_scheme(device.kind, scheme_named(scheme))
    return PromptChoice(
        device, wanted, rotated="rotate" in rest, shadow="no-shadow" not in rest, experts="experts" in rest
    )


def fit_scheme(kind: ProviderKind, scheme: Scheme) -> Scheme:
    """The scheme as this provider takes it."""
    if not kind.narrow_results or not scheme.quantises_activations:
        return scheme
    return replace(scheme, results="u8" if scheme.activations == "u8" else "u16", block=0)
