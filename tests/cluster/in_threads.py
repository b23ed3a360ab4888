"""A model on several ranks, each a thread of this process with kernels of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgerun.cluster.collective import Collective
from edgerun.cluster.conductor import Conductor
from edgerun.cluster.local import local_group
from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.shard_file import ShardSource, open_shard
from edgerun.cluster.shares import all_edges, divide
from edgerun.cluster.worker import OpenedShard, OpenShard, RankOptions, limits_of, work
from edgerun.errors import LostPeerError
from edgerun.formats.gguf import GgufFile
from edgerun.kernels import Kernels, load_kernels
from edgerun.models import Decoder
from edgerun.models.spec import ModelSpec
from edgerun.weights import ResidentStore

CONTEXT = 1024


def one_thread() -> Kernels:
    """Kernels for one rank of several on this machine."""
    return load_kernels("auto", threads=1)


def resident(make: Callable[[], Kernels]) -> OpenShard:
    """Shards in memory, computed by kernels of each rank's own."""

    @contextlib.contextmanager
    def opened(gguf: GgufFile, spec: ModelSpec, options: RankOptions, events: object) -> Iterator[OpenedShard]:
        with contextlib.closing(make()) as kernels:
            yield OpenedShard(kernels, ResidentStore(gguf, spec, kernels), None, None)

    return opened


@dataclass(frozen=True)
class Together:
    """The head of a group of threads."""

    decoder: Decoder
    conductor: Conductor
    collectives: Sequence[Collective]
    errors: list[BaseException]  # that ended workers
    times: list[Sequence[RankTimes]]  # of all ranks, as the head heard them


@contextlib.contextmanager
def together(
    gguf: GgufFile,
    spec: ModelSpec,
    parts: Sequence[float],
    folder: Path,
    open_with: OpenShard,
    group: Sequence[Collective] | None = None,
    *,
    in_units: bool = False,
) -> Iterator[Together]:
    """`spec` on as many ranks as there are parts. group: theirs; None: threads that hand arrays on. in_units: as of
    `divide`."""
    ranks = local_group(len(parts)) if group is None else group
    paths = []
    shares = divide(spec, spec.tensors, parts, in_units=in_units)
    for share in shares:
        source = ShardSource(gguf, spec, share)
        paths.append(folder / f"{source.digest}.gguf")
        if not paths[-1].exists():
            source.write(paths[-1])
    options, errors = RankOptions(CONTEXT, edges=all_edges(shares[0], parts)), []

    def worker(rank: int) -> None:
        try:
            work(ranks[rank], paths[rank], msgspec.msgpack.encode(options), open_with)
        except LostPeerError:
            pass
        except BaseException as error:  # noqa: BLE001 - the test is told
            errors.append(error)
        finally:
            ranks[rank].close()

    threads = [threading.Thread(target=worker, args=(rank,), daemon=True) for rank in range(1, len(parts))]
    for thread in threads:
        thread.start()
    with ExitStack() as stack:
        stack.callback(lambda: [thread.join(30) for thread in threads])
        stack.callback(ranks[0].close)
        mine, shard = open_shard(paths[0])
        stack.enter_context(mine)
        opened = stack.enter_context(open_with(mine, shard, options, None))
        times: list[Sequence[RankTimes]] = []
        conductor = Conductor(ranks[0], shard, opened.store, times.append, options.edges)
        decoder = Decoder(shard, opened.store, opened.kernels, context=CONTEXT, ranks=conductor)
        conductor.follow(decoder.pages)
        ranks[0].gather(limits_of(shard, opened))
        yield Together(decoder, conductor, ranks, errors, times)
        conductor.end()


def greedy(decoder: Decoder, prompt: Sequence[int], n: int) -> list[int]:
    """The likeliest `n` tokens after a prompt."""
    cache = decoder.new_cache(len(prompt) + n)
    ids, out = list(prompt), []
    for _ in range(n):
        logits = decoder.forward(ids, cache)
        assert logits is not None
        out.append(int(logits[0].argmax()))
        ids = out[-1:]
    return out
