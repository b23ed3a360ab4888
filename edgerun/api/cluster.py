"""Models that several devices compute: the head's engine, and what the other devices do for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from edgerun.api.loading import choose_context, choose_step_tokens, find_model, load_words, reply_format
from edgerun.api.weights import kv_options, load_kernels_for, open_store, plan_weights
from edgerun.cluster.assembly import Assembly
from edgerun.cluster.collective import Collective
from edgerun.cluster.group import GroupDecoder, Whole
from edgerun.cluster.shard_view import NotResidentError, ShardView
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.shares import FOR_MODEL, UNMEASURED_DISK, Ability
from edgerun.cluster.worker import OpenedShard, RankOptions, work
from edgerun.device import memory_limits
from edgerun.engine import Engine
from edgerun.engine.engine import MakeDrafter
from edgerun.engine.shortage import told_as_shortage
from edgerun.errors import UnsupportedError, UsageError
from edgerun.events import EventSink, Notice, ShareOpened, ignore
from edgerun.formats.gguf import GgufFile, open_gguf
from edgerun.kernels import Kernels
from edgerun.models import load_spec
from edgerun.models.holdings import common_kv_bytes, kv_bytes
from edgerun.models.share import check_dividable
from edgerun.models.spec import ModelSpec
from edgerun.options import LoadOptions
from edgerun.planning import process_budget
from edgerun.planning.process import process_state
from edgerun.weights.identity import identify


def share_worker(
    events: EventSink = ignore, *, kernels: str = "auto", threads: int | None = None, memory_bytes: int | None = None
) -> Callable[[Collective, Path, bytes], None]:
    """What a device does for the head of a group, until that lets it go: `cluster.worker.work` with what of this
    machine it may have. kernels, threads, memory_bytes: as `RankOptions`; the head does not decide on them."""

    def open_own(
        gguf: GgufFile, spec: ModelSpec, options: RankOptions, events: EventSink
    ) -> contextlib.AbstractContextManager[OpenedShard]:
        own = msgspec.structs.replace(options, kernels=kernels, threads=threads, memory_bytes=memory_bytes)
        return open_share(gguf, spec, own, events)

    def compute(collective: Collective, shard: Path, details: bytes) -> None:
        work(collective, shard, details, open_own, events)

    return compute


@contextlib.contextmanager
def open_share(
    gguf: GgufFile, spec: ModelSpec, options: RankOptions, events: EventSink, kernels: Kernels | None = None
) -> Iterator[OpenedShard]:
    """A shard (or a whole model) in this process, streamed where it does not fit. kernels: those that are loaded, with
    all that the model needs. NotResidentError for a view of one that does not fit."""
    kv = kv_options(options.kv)
    with ExitStack() as stack:
        if kernels is None:
            kernels = load_kernels_for(spec, options.kernels, threads=options.threads, events=events, kv=kv)
            stack.callback(kernels.close)
        plan = plan_weights(
            gguf, spec, context=options.context, memory_bytes=options.memory_bytes, kernels=kernels, kv=kv
        )
        if isinstance(gguf, ShardView) and plan.mode != "resident":
            raise NotResidentError("it does not fit in memory, and what is streamed needs a shard of its own")
        store, close_store = open_store(gguf, spec, kernels, plan, prefetch=options.prefetch, events=events)
        stack.callback(close_store)
        events(ShareOpened(plan.expected_bytes, plan.cached_share))
        yield OpenedShard(kernels, store, kv, plan.kv_limit_bytes)


@told_as_shortage("loading the model")
def load_clustered(
    model: str | Path,
    options: LoadOptions,
    assembly: Assembly,
    *,
    own_rate: float,
    own_disk_rate: float = UNMEASURED_DISK,
    shards: ShardStore,
    draft: MakeDrafter | None = None,
    same_tokens: bool | None = None,
) -> tuple[Engine, Path, Callable[[], None]]:
    """As `loading.load_engine`, for a model that this device and those of the assembly compute together.

    own_rate, own_disk_rate: what this device computes and reads, as `Ability.rate` and `disk_rate` of the others;
    shards: where this device's shards are kept; same_tokens: as `Whole.in_units`.
    UnsupportedError for a model that cannot be divided. UsageError for a prompt backend: each device computes its part
    of a prompt with its kernels.
    """
    if options.prefill not in ("auto", "kernels"):
        raise UsageError(f"prefill: a group computes prompts with its devices' kernels, not {options.prefill!r}")
    events = options.events
    path = find_model(model, events)
    with ExitStack() as stack:
        stack.callback(assembly.close)
        gguf = stack.enter_context(open_gguf(path))
        spec = load_spec(gguf)
        check_dividable(spec)  # also while nobody else is there: whoever comes would be too late
        if options.window is not None:
            raise UnsupportedError("a group of devices has no window yet; leave --window out")
        for text in spec.unused:
            events(Notice(text))
        n_context = choose_context(options.context, spec, gguf.metadata)
        words = load_words(gguf.metadata, stack, events)
        kv = kv_options(options.kv)
        kernels = load_kernels_for(spec, options.kernels, threads=options.n_threads, events=events, kv=kv)
        stack.callback(kernels.close)

        def open_own(
            gguf: GgufFile, spec: ModelSpec, options: RankOptions, events: EventSink
        ) -> contextlib.AbstractContextManager[OpenedShard]:
            return open_share(gguf, spec, options, events, kernels)

        budget, _ = process_budget(options.memory_bytes, memory_limits(), process_state().private_bytes)
        rank_options = RankOptions(
            context=n_context,
            kernels="auto",  # each device's best
            kv=options.kv,
            prefetch=options.prefetch,
        )
        own, common = Ability(own_rate, int(FOR_MODEL * budget), own_disk_rate), common_kv_bytes(spec, n_context, kv)
        parted = kv_bytes(spec, n_context, kv=kv) - common
        whole = Whole(
            gguf, spec, own, shards, open_own, rank_options, options.memory_bytes, same_tokens, parted, common
        )
        decoder = GroupDecoder(whole, assembly, events)
        stack.callback(decoder.close)
        stack.callback(decoder.pages.ledger.release_all)
        engine = Engine(
            decoder,
            words.tokenizer,
            context=n_context,
            template=words.template,
            no_tokenizer=words.no_tokenizer,
            no_template=words.no_template,
            seed=options.seed,
            step_tokens=decoder.wave_tokens or choose_step_tokens(spec.tensors, spec.n_layers),
            tpot_s=options.tpot_s,
            context_shift=options.context_shift,
            draft=draft,
            identity=lambda: identify(gguf),
            reply_format=reply_format(words, options),
            events=events,
        )
        release = stack.pop_all().close
    return engine, path, release
