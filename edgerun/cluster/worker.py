"""A rank that is not the head: it loads its shard and computes what the head says, until that says it may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgerun.cluster.collective import Collective
from edgerun.cluster.copying import copy_as_said
from edgerun.cluster.lockstep import Lockstep, PassEnded
from edgerun.cluster.mirror import Follower, SaidPass, parsed
from edgerun.cluster.shard_file import open_shard
from edgerun.errors import DoesNotFitError, EdgerunError, FormatError, LostPeerError, UnsupportedError
from edgerun.events import EventSink, Notice, ignore, never
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.kv import KvLedger, KvOptions, PagePool
from edgerun.models.holdings import kv_groups, states_of
from edgerun.models.passes import Passes
from edgerun.models.reductions import reductions
from edgerun.models.spec import ModelSpec
from edgerun.weights import WeightStore

_CANNOT = -1.0  # what a rank tells first that cannot take part; its reason follows, byte by byte
_MOST_REASON_BYTES = 1000
_REASONS: dict[str, type[EdgerunError]] = {"DoesNotFitError": DoesNotFitError, "UnsupportedError": UnsupportedError}


class RankOptions(msgspec.Struct, frozen=True):
    """How a rank loads its shard. context: positions of a sequence; kv: as the option `kv`; memory_bytes: of the
    process, None: what it may have; prefetch: of streamed experts; edges: as of `Lockstep`."""

    context: int
    kernels: str = "auto"
    threads: int | None = None
    memory_bytes: int | None = None
    kv: str = "f16"
    prefetch: bool = True
    edges: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class OpenedShard:
    """What a rank computes with. kv_limit_bytes: of its keys and values, None: nobody counts."""

    kernels: Kernels
    store: WeightStore
    kv: KvOptions | None
    kv_limit_bytes: int | None


OpenShard = Callable[[GgufFile, ModelSpec, RankOptions, EventSink], AbstractContextManager[OpenedShard]]


def work(collective: Collective, shard: Path, details: bytes, open_with: OpenShard, events: EventSink = ignore) -> None:
    """A rank's whole life. details: `RankOptions` in msgpack. Raises LostPeerError when the head is gone, FormatError
    and what loading raises for a shard that cannot be computed; the group is over then."""
    try:
        options = msgspec.msgpack.decode(details, type=RankOptions)
    except msgspec.DecodeError as error:
        raise FormatError(f"how to load a shard is not said: {error}") from None
    with ExitStack() as stack:
        try:
            gguf, spec = open_shard(shard)
            stack.enter_context(gguf)
            opened = stack.enter_context(open_with(gguf, spec, options, events))
        except EdgerunError as error:
            collective.gather(told_reason(error))
            raise
        opened.kernels.prepare_eighths()
        collective.round_with(opened.kernels)
        collective.wait_with(opened.kernels.threads)
        lockstep = Lockstep(
            collective, spec.vocab_size, opened.store, checked_edges(options.edges, spec, collective.rank)
        )
        passes = Passes(spec, opened.store, opened.kernels, context=options.context, routed=_untold, ranks=lockstep)
        ledger = KvLedger(opened.kv_limit_bytes, opened.store.others_hold)
        pool = PagePool(kv_groups(spec, opened.kv), ledger, states_of(spec))
        follower = Follower(pool, options.context)
        collective.gather(limits_of(spec, opened))
        try:
            while _pass(collective, lockstep, passes, follower, events):
                pass
        finally:
            follower.release()


def checked_edges(edges: Sequence[tuple[int, ...]], spec: ModelSpec, rank: int) -> Sequence[tuple[int, ...]]:
    """The edges of all ranks' units, as the head says. FormatError where they are not those of this rank's shard."""
    by_count = {each[-1]: each for each in edges if len(each) > rank + 1}
    for layer in range(spec.n_layers):
        units = spec.units(layer)
        for each in () if units is None else (units.mixer, units.feed_forward):
            if not each.count:  # the layer does not have it
                continue
            known = by_count.get(each.count, ())
            if not known or (known[rank], known[rank + 1]) != (each.held.start, each.held.stop):
                raise FormatError(f"layer {layer}: the units of its shard are not those that the head deals out")
    return edges


def limits_of(spec: ModelSpec, opened: OpenedShard) -> F32:
    """What a rank can do, for the head: [positions of a wave, 0 for any; pages of each group of layers that it has
    memory for, -1 for any], f32."""
    groups = kv_groups(spec, opened.kv)
    page_bytes = sum(group.page_bytes for group in groups)
    limit = opened.kv_limit_bytes
    pages = -1 if limit is None or not page_bytes else limit // page_bytes
    return np.array([opened.store.wave_tokens, pages], np.float32)


def told_reason(error: EdgerunError) -> F32:
    """Why a rank cannot take part, for the head in place of what it can do."""
    text = f"{type(error).__name__} {error}".encode()[:_MOST_REASON_BYTES]
    return np.concatenate([[_CANNOT], np.frombuffer(text, np.uint8)]).astype(np.float32)


def heard_limits(each: F32) -> tuple[int, int]:
    """Positions of a wave and pages, as of `limits_of`. LostPeerError for what is neither that nor a reason,
    DoesNotFitError or UnsupportedError with the reason."""
    if not np.isfinite(each).all() or len(each) < 2:
        raise LostPeerError("a rank does not say what it can do")
    if each[0] != _CANNOT and len(each) == 2:
        return int(each[0]), int(each[1])
    if each[0] != _CANNOT or not ((each[1:] >= 0) & (each[1:] < 256)).all():
        raise LostPeerError("a rank does not say what it can do")
    name, _, why = each[1:].astype(np.uint8).tobytes().decode(errors="replace").partition(" ")
    raise _REASONS.get(name, EdgerunError)(why)


def _pass(collective: Collective, lockstep: Lockstep, passes: Passes, follower: Follower, events: EventSink) -> bool:
    """One pass, or blocks that go to the head or come from it; False: there are no more."""
    message = collective.announce(b"")
    if not message:
        return False
    said, spec = parsed(message), passes.spec
    if not isinstance(said, SaidPass):
        copy_as_said(said, follower, collective)
        return True
    rows = follower.check(said)
    is_few = said.few and rows <= len(passes.few.x)
    x = passes.few.x[:rows] if is_few else np.empty((rows, spec.d_model), np.float32)
    collective.broadcast(x)
    passes.store.begin()
    try:
        lockstep.run(reductions(spec, rows, collective.size), lambda: passes.run(follower.task(said), x, never))
    except LostPeerError:
        raise
    except PassEnded:
        pass  # whoever ended it has told the head why
    except EdgerunError as error:
        events(Notice(f"a pass ended: {error}"))
    finally:
        if passes.store.wave_tokens:  # memory is short: it is needed for weights now
            passes.layers.drop_scratch()
    return True


def _untold(layer: int, ids: I32) -> None:
    """Nobody asks this rank what routers choose."""
