"""Which devices should run a model, and how: what a token and a prompt take on one of them, on several that divide
every layer (tensor parallel), and on several that divide the layers (pipeline).

Computing and reading are predicted as `edgerun plan` does, of each device's share; sums over ranks as `links` does, and
what their software costs each device, between products, comes on top of that. A step of several ranks takes as long
as that of the slowest, since all wait for each other twice a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from edgerun.cluster.cuts import cuts_of
from edgerun.cluster.links import Links, predict_s
from edgerun.cluster.profiles import PlannedDevice, Profiles
from edgerun.cluster.shares import Ability, divide, ranges, solve, with_states
from edgerun.cluster.ways import FOLDING, WayName
from edgerun.cluster.wire_format import EXACT, WireFormat
from edgerun.errors import DoesNotFitError, UnsupportedError
from edgerun.formats.gguf import TensorInfo
from edgerun.kv import KvOptions
from edgerun.models import ModelSpec
from edgerun.models.holdings import common_kv_bytes, kv_bytes
from edgerun.models.reductions import reductions
from edgerun.models.share import spec_of_share, why_whole
from edgerun.planning.memory import plan_memory
from edgerun.planning.process import LIBRARIES_BYTES
from edgerun.planning.rates import ProductRates, Rates
from edgerun.planning.speed import Speed, TypeSizes, predict_speed
from edgerun.weights.catalog import EMBEDDING, HEAD, make_catalog

Kind = Literal["alone", "tensor", "pipeline"]

PROMPT_TOKENS = 256  # of the prompt that is compared
_WORTH = 0.95  # of the time of one device alone: with less gain several are not worth the trouble


@dataclass(frozen=True)
class Choice:
    """A way to run the model. token_s: of one sequence's next token; prompt_s: of PROMPT_TOKENS; parts: of the weights,
    device by device; wire_s: what of token_s is for sums, software included. runs: whether edgerun can run it so."""

    kind: Kind
    devices: tuple[str, ...]
    way: WayName | None
    parts: tuple[float, ...]
    token_s: float
    prompt_s: float
    wire_s: float
    runs: bool = True

    @property
    def tok_s(self) -> float:
        """Tokens a second."""
        return 1 / self.token_s


@dataclass(frozen=True)
class Model:
    """What is planned: a spec with its tensors, for sequences of `context` positions. process_bytes: of each device's
    process before it has weights, as `edgerun plan` counts it."""

    spec: ModelSpec
    sizes: TypeSizes
    context: int
    kv: KvOptions | None = None
    process_bytes: int = LIBRARIES_BYTES


def choices(model: Model, profiles: Profiles) -> list[Choice]:
    """All that would do, the fastest first. DoesNotFitError where nothing would."""
    found = choices_of_head(model, profiles) + [*_alone(model, profiles.devices[1:])]
    if len(profiles.devices) > 1:
        found += _pipeline(model, profiles.devices, profiles.links)
    if not found:
        why = why_whole(model.spec)
        raise DoesNotFitError(
            "the model does not fit these devices, neither one of them nor all together" + (f"; {why}" if why else "")
        )
    return sorted(found, key=lambda choice: choice.token_s)


def choices_of_head(
    model: Model, profiles: Profiles, ways: Sequence[WayName] = FOLDING, wire: WireFormat = EXACT
) -> list[Choice]:
    """Those that edgerun can run while the head has the text: it alone, and groups that sum by one of `ways`, in this
    format."""
    found = [*_alone(model, profiles.devices[:1])]
    for devices in () if why_whole(model.spec) else _groups(profiles.devices):
        with suppress(DoesNotFitError, UnsupportedError):  # the second: of more devices than it has rows for
            found += _tensor(model, devices, profiles.links, ways, wire)
    return found


def chosen(found: Sequence[Choice]) -> Choice:
    """What to do of `choices`: the fastest that edgerun can run, but one device where several are not worth it."""
    able = [choice for choice in found if choice.runs]
    if not able:
        raise DoesNotFitError(
            "no device can hold the model, and all together only layer after layer, which edgerun does not do"
        )
    best = min(able, key=lambda choice: choice.token_s)
    alone = min((choice for choice in able if choice.kind == "alone"), key=lambda choice: choice.token_s, default=None)
    return best if alone is None or best.token_s < _WORTH * alone.token_s else alone


def _alone(model: Model, devices: Sequence[PlannedDevice]) -> Iterator[Choice]:
    for device in devices:
        try:
            speed = _speed(model, model.spec, model.spec.tensors, device)
        except DoesNotFitError:
            continue
        yield Choice("alone", (device.name,), None, (1.0,), 1 / speed.decode_tok_s, speed.first_token_s, 0.0)


def _groups(devices: Sequence[PlannedDevice]) -> Iterator[tuple[PlannedDevice, ...]]:
    """The head with the fastest others, 2 devices and more."""
    head, *others = devices
    others.sort(key=lambda device: -device.weights_bytes_per_s)
    for count in range(1, len(others) + 1):
        yield (head, *others[:count])


def _tensor(
    model: Model, devices: Sequence[PlannedDevice], links: Links, ways: Sequence[WayName], wire: WireFormat
) -> Iterator[Choice]:
    spec, n = model.spec, len(devices)
    common = common_kv_bytes(spec, model.context, model.kv)
    taken = model.process_bytes + common + (kv_bytes(spec, model.context, kv=model.kv) - common) // n
    abilities = [
        Ability(device.weights_bytes_per_s, max(0, device.memory_bytes - taken), device.disk_bytes_per_s)
        for device in devices
    ]
    parts = with_states(spec, solve(abilities, sum(info.n_bytes for info in spec.tensors.values())))
    speeds = []
    for share, device in zip(divide(spec, spec.tensors, parts), devices, strict=True):
        tensors = {
            cut.name: TensorInfo(cut.name, cut.shape, cut.info.type, cut.n_bytes, cut.info.path, 0)
            for cut in cuts_of(spec, share)
        }
        speeds.append(_speed(model, spec_of_share(spec, share), tensors, device))
    token_s, prompt_s = [1 / each.decode_tok_s for each in speeds], [each.first_token_s for each in speeds]
    # x goes out to each, and logits come back, of the vocabulary that the others have
    around = 2 * links.hop_s + 4 * ((n - 1) * spec.d_model + (1 - parts[0]) * spec.vocab_size) * links.byte_s
    for way in ways:

        def step_s(rows: int, own_s: Sequence[float], more_s: float, way: WayName = way) -> float:
            sums = [predict_s(way, links, n, wire.n_bytes(each.numbers + 1)) for each in reductions(spec, rows, n)]
            wire_s = sum(sums) + more_s
            busy_s = [took_s + len(sums) * device.sum_s for took_s, device in zip(own_s, devices, strict=True)]
            return max(_with_wire_s(each, wire_s, device) for each, device in zip(busy_s, devices, strict=True))

        whole_s = step_s(1, token_s, around)
        rows_s = 4 * (n - 1) * PROMPT_TOKENS * spec.d_model * links.byte_s
        whole_prompt_s = step_s(PROMPT_TOKENS, prompt_s, around + rows_s)
        yield Choice("tensor", _names(devices), way, parts, whole_s, whole_prompt_s, whole_s - max(token_s))


def _with_wire_s(busy_s: float, wire_s: float, device: PlannedDevice) -> float:
    """Of a device that is busy for so long, pauses included, in which it waits for the wire as long as they last."""
    return max(busy_s, device.quota * busy_s + wire_s)


def _pipeline(model: Model, devices: Sequence[PlannedDevice], links: Links) -> Iterator[Choice]:
    """Layers one after another, as many on each device as its rate is worth. Only one of them works at a time."""
    spec, rates = model.spec, [device.weights_bytes_per_s for device in devices]
    token_s = prompt_s = 0.0
    used = [part for part in zip(ranges(spec.n_layers, 1, rates), devices, strict=True) if part[0]]
    for layers, device in used:
        last = layers.stop == spec.n_layers
        try:
            speed = _speed(
                model, replace(spec, layers=spec.layers[layers.start : layers.stop]), _stage(spec, layers, last), device
            )
        except DoesNotFitError:
            return
        token_s += 1 / speed.decode_tok_s
        prompt_s += speed.first_token_s
    hops = len(used) * links.hop_s
    wire_s = hops + 4 * (len(used) * spec.d_model + spec.vocab_size) * links.byte_s
    prompt_wire_s = hops + 4 * len(used) * PROMPT_TOKENS * spec.d_model * links.byte_s
    parts = tuple(len(layers) / spec.n_layers for layers, _ in used)
    names = _names([device for _, device in used])
    yield Choice("pipeline", names, None, parts, token_s + wire_s, prompt_s + prompt_wire_s, wire_s, runs=False)


def _stage(spec: ModelSpec, layers: range, last: bool) -> dict[str, TensorInfo]:
    """The tensors of some layers, counted from 0; the head's but on the last stage only in name."""
    found = {}
    for name, info in spec.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "blk":
            number, _, part = rest.partition(".")
            if int(number) in layers:
                found[f"blk.{int(number) - layers.start}.{part}"] = info
        else:
            found[name] = info
    if not last:
        head = found.get(HEAD, found[EMBEDDING])
        found[HEAD] = replace(head, shape=(16, head.shape[1]), n_bytes=16 * head.row_bytes)
    return found


def _speed(model: Model, spec: ModelSpec, tensors: Mapping[str, TensorInfo], device: PlannedDevice) -> Speed:
    """Of one device with its part of the model. DoesNotFitError."""
    catalog = make_catalog(tensors, spec.n_layers)
    planned = plan_memory(
        device.name,
        catalog,
        spec,
        model.sizes,
        context=model.context,
        budget_bytes=device.memory_bytes,
        runtime_bytes=model.process_bytes,
        kv=model.kv,
    )
    one = ProductRates(device.weights_bytes_per_s, device.prompt_ops_per_s)
    rates = Rates(_SameForAll(one), device.disk_bytes_per_s, 4 << 20)
    return predict_speed(catalog, spec, planned, model.sizes, rates, prompt_tokens=PROMPT_TOKENS)


class _SameForAll(dict[str, ProductRates]):
    """Of a device of which one rate is known for all types."""

    def __init__(self, rates: ProductRates) -> None:
        super().__init__({"": rates})

    def __missing__(self, name: str) -> ProductRates:
        return self[""]


def _names(devices: Sequence[PlannedDevice]) -> tuple[str, ...]:
    return tuple(device.name for device in devices)
