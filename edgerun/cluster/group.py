"""A model that a group of devices computes, and goes on computing when one of them is gone.

The head divides the model among those who are there. When a device is lost in a step, it divides it anew among who is
left (itself at least): keys and values are forgotten but for what it has copies of (`copies.py`), the step raises
PagesLostError, and whoever has the tokens has the others computed again. A device that comes takes part from the next
prompt on.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic

import msgspec

from edgerun.cluster.assembly import Assembly
from edgerun.cluster.at_once import Stop
from edgerun.cluster.collective import Collective
from edgerun.cluster.conductor import Conductor
from edgerun.cluster.copies import Copies, Kept
from edgerun.cluster.copying import RankPart, heads_of, hold_alone
from edgerun.cluster.cuts import cuts_of
from edgerun.cluster.local import local_group
from edgerun.cluster.lockstep import Lockstep
from edgerun.cluster.own_thread import OwnThread
from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.shard_file import ShardSource, open_shard
from edgerun.cluster.shard_view import NotResidentError, ShardView
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import Ability, all_edges, divide, solve, with_states
from edgerun.cluster.slow import Judge
from edgerun.cluster.state_parts import state_part
from edgerun.cluster.worker import OpenedShard, OpenShard, RankOptions, heard_limits, limits_of
from edgerun.errors import DoesNotFitError, EdgerunError, LostPeerError, PagesLostError, UnsupportedError
from edgerun.events import EventSink, Notice, never
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.attention_layout import KEYS
from edgerun.kernels.interface import F32
from edgerun.kv import KvLedger
from edgerun.models import Batch, Decoder
from edgerun.models.holdings import kv_groups, states_of
from edgerun.models.share import Share
from edgerun.models.spec import ModelSpec

_MOST_TRIES = 64  # to form a group while devices go
_CHEAP = 1.15  # times the largest share that units may make it
_REGAIN_S = 1.0  # to have lost devices back, where a cut would take longer
_IDLE_S = 0.5  # after a step the head is still taken to be at work


@dataclass(frozen=True)
class Formed:
    """The head's part of a group. conductor: None where it is alone; wave_tokens: of a wave, that suits all ranks;
    others: what ranks 1, 2, ... can do; judge: of them, where there are some. shares: of all ranks, none where the
    head has the whole model; copies_bytes: as `Copies.limit_bytes`."""

    spec: ModelSpec
    opened: OpenedShard
    conductor: Conductor | None
    wave_tokens: int
    close: Callable[[], None]
    others: tuple[Ability, ...] = ()
    judge: Judge | None = None
    shares: tuple[Share, ...] = ()
    copies_bytes: int | None = 0


@dataclass(frozen=True)
class Whole:
    """The model that is divided. own: what the head itself can do; shards: where its shards' files are kept; options:
    of all ranks, memory_bytes: of the head's process, None: what it may have; kv_bytes: of a whole context, all ranks
    together, common_kv_bytes: of each, beside its part of those. in_units: whether sums are made so that tokens are the
    same whoever takes part (`units.py`); None: as the first group finds it cheap."""

    gguf: GgufFile
    spec: ModelSpec
    own: Ability
    shards: ShardStore
    open_with: OpenShard
    options: RankOptions
    memory_bytes: int | None = None
    in_units: bool | None = None
    kv_bytes: int = 0
    common_kv_bytes: int = 0

    @property
    def own_options(self) -> RankOptions:
        """Of the head."""
        return msgspec.structs.replace(self.options, memory_bytes=self.memory_bytes)


def form(model: Whole, assembly: Assembly, events: EventSink) -> tuple[Whole, Formed]:
    """A group of this device and all that are there; and the model, for which it is decided then whether sums are made
    of units."""
    for _ in range(_MOST_TRIES):
        others = assembly.abilities()
        if not others:
            return model, _alone(model, events)
        if model.in_units is None:
            parts = parts_of(model, others)
            model = replace(model, in_units=are_units_cheap(model.spec, parts))
        try:
            return model, _divided(model, others, assembly, events)
        except LostPeerError as error:
            events(Notice(f"the model is divided anew: {error}"))
            assembly.end()
    raise LostPeerError("devices come and go: there is no group of them")


def parts_of(model: Whole, others: Sequence[Ability]) -> tuple[float, ...]:
    """What each device shall have of the model, rank by rank."""
    common = model.common_kv_bytes
    abilities = [replace(each, memory_bytes=max(0, each.memory_bytes - common)) for each in (model.own, *others)]
    return with_states(model.spec, solve(abilities, _needed_bytes(model)))


def _needed_bytes(model: Whole) -> int:
    """What devices hold a part of each: of keys and values about the part that they have of the weights."""
    return sum(info.n_bytes for info in model.spec.tensors.values()) + model.kv_bytes


def are_units_cheap(spec: ModelSpec, parts: Sequence[float]) -> bool:
    """Whether a model can be divided in units, and without making any rank's share much larger."""
    try:
        in_units, fine = (_largest(spec, parts, units) for units in (True, False))
    except UnsupportedError:
        return False
    return in_units <= _CHEAP * fine


def _largest(spec: ModelSpec, parts: Sequence[float], in_units: bool) -> float:
    """Bytes of weights of the rank that has most for what is due to it, for each part that is due."""
    shares = divide(spec, spec.tensors, parts, in_units=in_units)
    return max(
        sum(cut.n_bytes for cut in cuts_of(spec, share)) / part
        for share, part in zip(shares, parts, strict=True)
        if part > 0
    )


def shares_of(model: Whole, others: Sequence[Ability]) -> tuple[Share, ...]:
    """Of this device and the others, rank by rank."""
    parts = parts_of(model, others)
    return divide(model.spec, model.spec.tensors, parts, in_units=model.in_units is True)


def sources_of(model: Whole, shares: Sequence[Share]) -> list[ShardSource]:
    """The shards of these."""
    return [ShardSource(model.gguf, model.spec, share) for share in shares]


def _alone(model: Whole, events: EventSink) -> Formed:
    """With units the head is a group of one, which sums up as any other. In the model's file, columns of different
    units lie side by side in every row of the matrices before a sum. Where all fits in memory they are taken apart as
    they are read; what streams reads whole rows, and needs a file of its own."""
    if model.in_units:
        if _is_read_apart(model):
            with contextlib.suppress(NotResidentError):
                return _divided(model, (), _Nobody(), events, has_file=False)
        try:
            model.shards.own(sources_of(model, shares_of(model, ()))[0], beside_own=True)
        except DoesNotFitError as error:
            events(
                Notice(f"this device goes on alone from the model's file, and the last bits of sums differ: {error}")
            )
        else:
            return _divided(model, (), _Nobody(), events)
    with ExitStack() as stack:
        opened = stack.enter_context(model.open_with(model.gguf, model.spec, model.own_options, events))
        return Formed(model.spec, opened, None, opened.store.wave_tokens, stack.pop_all().close)


def _is_read_apart(model: Whole) -> bool:
    """Whether a head that is alone is to read the model's own file, and needs no cut of it."""
    return _needed_bytes(model) + model.common_kv_bytes <= model.own.memory_bytes


def _divided(
    model: Whole,
    others: Sequence[Ability],
    assembly: Assembly | _Nobody,
    events: EventSink,
    *,
    has_file: bool = True,
) -> Formed:
    """has_file: the head's shard is, or is made, a file; else NotResidentError where it does not fit in memory."""
    parts, shares = parts_of(model, others), shares_of(model, others)
    sources, edges, names = sources_of(model, shares), all_edges(shares[0], parts), assembly.names()
    with ExitStack() as stack:
        threads, stop = stack.enter_context(ThreadPoolExecutor(1)), Stop()
        stack.callback(stop.set)
        own = threads.submit(model.shards.own, sources[0], pace=stop.check) if has_file else None
        stack.callback(assembly.end)
        options = msgspec.structs.replace(model.options, edges=edges)
        collective = assembly.begin(sources[1:], msgspec.msgpack.encode(options))
        stack.callback(collective.close)
        gguf, shard = _viewed(model, shares[0]) if own is None else open_shard(own.result())
        stack.enter_context(gguf)
        opened = stack.enter_context(model.open_with(gguf, shard, model.own_options, events))
        judge = Judge(parts)

        def worked(times: Sequence[RankTimes]) -> None:
            assembly.worked(times)
            judge.hear(times)

        opened.kernels.prepare_eighths()
        collective.round_with(opened.kernels)
        collective.wait_with(opened.kernels.threads)
        conductor = Conductor(collective, shard, opened.store, worked, edges)
        limits = _limits(collective.gather(limits_of(shard, opened)), names)
        copies_bytes = 0 if opened.store.wave_tokens else opened.kv_limit_bytes  # what streams needs all memory
        waves = [wave for wave, _ in limits if wave > 0]
        pages = [page for _, page in limits if page >= 0]
        if pages:
            limit = min(pages) * sum(group.page_bytes for group in kv_groups(shard, opened.kv))
            opened = OpenedShard(opened.kernels, opened.store, opened.kv, limit)
        wave_tokens = min(waves, default=0)
        judged = judge if others else None
        close = stack.pop_all().close
        return Formed(shard, opened, conductor, wave_tokens, close, tuple(others), judged, shares, copies_bytes)


def _viewed(model: Whole, share: Share) -> tuple[GgufFile, ModelSpec]:
    view = ShardView(model.gguf, model.spec, share)
    return view, view.spec


def _limits(told: Sequence[F32], names: Sequence[str]) -> list[tuple[int, int]]:
    """What all ranks can do; the reason of one that cannot take part, with its name among those of ranks 1 and on."""
    found = []
    for each, name in zip(told, ("this device", *names), strict=True):
        try:
            found.append(heard_limits(each))
        except LostPeerError:
            raise
        except EdgerunError as error:
            raise type(error)(f"{name} cannot take part: {error}") from None
    return found


class _Nobody:
    """What a head that is alone begins a group of."""

    def begin(self, shards: Sequence[ShardSource], details: bytes) -> Collective:
        (alone,) = local_group(1)
        return alone

    def names(self) -> list[str]:
        return []

    def end(self) -> None:
        return

    def worked(self, times: Sequence[RankTimes]) -> None:
        return


class GroupDecoder(Decoder):
    """The decoder of a model that a group computes. Steps are computed by a thread of its own, which no interrupt can
    leave in the middle of a message. Close it."""

    def __init__(self, model: Whole, assembly: Assembly, events: EventSink) -> None:
        self._assembly = assembly
        self._events = events
        self._formed: Formed | None
        self._thread = OwnThread("the group's head")
        self._worked_s = monotonic()
        self._model, formed = form(model, assembly, events)
        self._formed = formed
        opened = formed.opened
        state_bytes = states_of(model.spec).model_bytes
        self._copies = Copies(kv_groups(model.spec, opened.kv), formed.copies_bytes, state_bytes)
        super().__init__(
            formed.spec,
            opened.store,
            opened.kernels,
            context=model.options.context,
            kv_ledger=KvLedger(opened.kv_limit_bytes, self._about_to_hold),
            kv=opened.kv,
            ranks=formed.conductor,
        )
        self._follow(formed, ())

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return 1 if self._formed is None or self._formed.conductor is None else self._formed.conductor.size

    @property
    def lockstep(self) -> Lockstep | None:
        """What counts the group's sums; None where the head is alone."""
        return None if self._formed is None or self._formed.conductor is None else self._formed.conductor.lockstep

    @property
    def arithmetic(self) -> str:
        """As `Decoder.arithmetic`, never twice the same: in no file are the pages that other ranks have."""
        return f"{super().arithmetic} {secrets.token_hex(8)}"

    def before_prompt(self) -> None:
        """As `Decoder.before_prompt`: devices that came take part from here on, and one that the others are faster
        without does not. Then sequences have what there were copies of."""
        slow = None if self._formed is None or self._formed.judge is None else self._formed.judge.slow
        if slow is not None and self._fits_without(slow.rank):
            name = self._assembly.names()[slow.rank - 1]
            self._assembly.leave_out(slow.rank - 1)
            self.divide_anew(
                f"{name} is slow and left out: a token took {1e3 * slow.with_s:.0f} ms with it, "
                f"{1e3 * slow.without_s:.0f} ms are expected without"
            )
        elif self._assembly.has_news():
            self.divide_anew("a device has come")

    def step(self, batch: Batch, *, cancelled: Callable[[], bool] | None = None) -> list[F32 | None]:
        """As `Decoder.step`. PagesLostError when the model had to be divided anew: every sequence has what there were
        copies of, or nothing."""
        if self._formed is None:
            raise self._lost("there was no group")
        lengths = [each.sequence.length for each in batch.stretches]
        for each, length in zip(batch.stretches, lengths, strict=True):
            if len(each.ids) > KEYS:  # of what a prompt leaves, states are copied where whole blocks of pages end
                each.sequence.mark((length + len(each.ids)) // KEYS * KEYS)
        is_interrupted = False

        def stop() -> bool:
            return is_interrupted or (cancelled or never)()

        try:
            found = self._thread.call(lambda: super(GroupDecoder, self).step(batch, cancelled=stop))
            self._worked_s = monotonic()
            return found
        except LostPeerError as error:
            raise self._lost(str(error)) from None
        except BaseException:
            is_interrupted = True
            self._thread.wait()
            for each, length in zip(batch.stretches, lengths, strict=True):
                if each.sequence.length > length:
                    each.sequence.truncate(length)
            raise

    def close(self) -> None:
        """End the group; the other devices are let go. Harmless when repeated."""
        formed, self._formed = self._formed, None
        if formed is not None:
            if formed.conductor is not None:
                with contextlib.suppress(LostPeerError):
                    formed.conductor.end()
            formed.close()
        self._thread.close()
        self._assembly.close()

    def divide_anew(self, why: str, *, is_lost: bool = False) -> None:
        """Among who is there now. Then sequences have what there were copies of, on all ranks. is_lost: it is because
        of a loss."""
        kept = self._copies.kept()
        for _ in range(_MOST_TRIES):
            self._events(Notice(f"the model is divided anew: {why}"))
            formed, self._formed = self._formed, None
            if formed is not None:
                formed.close()
            if is_lost and self._must_cut():
                self._assembly.regain(_REGAIN_S)
            self._model, formed = form(self._model, self._assembly, self._events)
            self._formed = formed
            opened, spec = formed.opened, formed.spec
            self.pages.ledger.limit_bytes = opened.kv_limit_bytes
            self._copies.clear()
            self._copies.limit_bytes = formed.copies_bytes
            self.pages.lay_out(kv_groups(spec, opened.kv), states_of(spec))
            self.use(spec, opened.store, opened.kernels, formed.conductor)
            try:
                self._follow(formed, kept)
            except LostPeerError as error:  # while it was given what was kept, of which nothing is lost by that
                why, is_lost = str(error), True
            else:
                return
        raise LostPeerError("devices come and go: there is no group of them")

    def _lost(self, why: str) -> PagesLostError:
        self.divide_anew(why, is_lost=True)
        return PagesLostError(f"the model was divided anew ({why}); what was held is computed again")

    def _follow(self, formed: Formed, kept: Sequence[Kept]) -> None:
        """Have all ranks hold what this one's sequences hold, and sequences what was kept of them. LostPeerError."""
        self.wave_tokens = formed.wave_tokens
        copies, conductor = self._copies, formed.conductor
        if conductor is None:
            self.pages.copied = None
            n_positions = hold_alone(kept, copies.groups, self.pages, self._model.spec)
        else:
            spec = self._model.spec
            parts = [RankPart(heads_of(spec, each, copies.groups), state_part(spec, each)) for each in formed.shares]
            conductor.follow(self.pages, copies, parts)
            n_positions = self._given_back(conductor, kept) if kept else 0
        if n_positions:
            self._events(Notice(f"keys and values of {n_positions} positions were kept, and are not computed again"))
        if self.size == 1:
            copies.clear()
            return
        # A group of two, without the other, is this device, which needs no shard unless sums are made of units.
        if len(formed.others) > 1 or (formed.others and self._model.in_units):
            self._assembly.prepare(lambda lost, pace: self._cut_without(formed, lost, pace), self._is_busy)

    def _given_back(self, conductor: Conductor, kept: Sequence[Kept]) -> int:
        """By the head's own thread, as steps are."""
        try:
            return self._thread.call(lambda: conductor.give_back(kept))
        except BaseException:
            self._thread.wait()
            raise

    def _cut_without(self, formed: Formed, lost: int, pace: Callable[[], None]) -> list[ShardSource]:
        """See `CutWithout`."""
        left = [each for place, each in enumerate(formed.others) if place != lost]
        sources = sources_of(self._model, shares_of(self._model, left))
        if left or not _is_read_apart(self._model):
            self._model.shards.own(sources[0], spare=True, pace=pace)
        return sources[1:]

    def _about_to_hold(self, n_bytes: int) -> None:
        """Of pages: others have what is left of the memory for them."""
        self.store.others_hold(n_bytes)
        self._copies.make_room(n_bytes)

    def _must_cut(self) -> bool:
        """Whether this device has not what it needs to go on with those who are left: a shard, or, alone, the model."""
        left, model = self._assembly.abilities(), self._model
        if not left and (not model.in_units or _is_read_apart(model)):
            return True
        return not model.shards.has_own(sources_of(model, shares_of(model, left)[:1])[0])

    def _fits_without(self, rank: int) -> bool:
        """Whether the others have the memory for the model."""
        assert self._formed is not None
        left = [self._model.own, *self._formed.others]
        del left[rank]
        return sum(each.memory_bytes for each in left) >= _needed_bytes(self._model)

    def _is_busy(self) -> bool:
        return monotonic() < self._worked_s + _IDLE_S
