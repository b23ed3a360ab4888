"""How much faster several weak devices run a model together: processes in network namespaces, each held to a part of a
core and of the memory by control groups.

    python -m benchmarks.cluster MODEL [--devices 1,2,4] [--cores 0.5] [--memory 900M] [--disk 400M] [--delay 0.3]
        [--rate 1000] [--way auto] [--wire f32] [--prompt 256] [--tokens 32] [--context 1024] [--rounds 3]
        [--keep FOLDER]

Needs root, `ip`, /dev/net/tun, and control groups of version 1 or 2. Settings take turns, round by round, and medians
are shown, so that what else the machine does disturbs all alike. Prints a table in Markdown.

--in-turn: for a mixture whose routing follows a trace (`random_model.py --routing`), token by token; of other random
mixtures few experts are ever chosen. --disk: what each device's disk reads in a second (default: they share the
machine's, as fast as it is). --keep: homes and shards stay in this folder, and the next run with it is a second start.
Columns: sent is what the head had sent when the group was ready, which took so long; peak and plan are of the worker
that took most of its plan (processes, as their control groups count the page cache, too, and are never above their
limit).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from benchmarks.device_limits import Limits, limited, process_peak_bytes
from benchmarks.shared_kernels import share_kernels
from edgerun.api.cluster import load_clustered, share_worker
from edgerun.api.llm import LLM
from edgerun.cluster.assembly import CutWithout
from edgerun.cluster.control import Device
from edgerun.cluster.group import GroupDecoder
from edgerun.cluster.household import Household
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.cluster.shards import ShardStore
from edgerun.cluster.ways import WAY_NAMES
from edgerun.device import peak_bytes
from edgerun.errors import PagesLostError
from edgerun.events import Event, ShareOpened
from edgerun.models import Decoder
from edgerun.options import LoadOptions
from edgerun.units import parse_size_bytes
from tests.cluster.homes import acquainted, home_of
from tests.cluster.lab import can_emulate, heard_from, lab, line_with, running

_MIB = 1 << 20
_HEAD_S = 1500.0  # a share of a large model is cut, sent, and loaded on half a core
_RATE = 1e10  # of each: all are alike
_SETTLE_TOKENS = 4
_PATIENCE_S = 60.0  # with devices that start


def arguments(*words: str) -> argparse.Namespace:
    """Of the command line, or these."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--cores", type=float, default=0.5, help="of each device; 0: no limit")
    parser.add_argument("--memory", default="900M", help="of each device")
    parser.add_argument("--disk", default="0", help="what each reads from its disk in a second; 0: no limit")
    parser.add_argument("--keep", type=Path, help="a folder of homes and shards that is left for the next run")
    parser.add_argument("--delay", type=float, default=0.3, help="one way, in ms")
    parser.add_argument("--rate", type=float, default=1000, help="in Mb/s")
    parser.add_argument("--way", default="auto")
    parser.add_argument("--wire", default="f32")
    parser.add_argument("--same-tokens", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--in-turn", action="store_true", help="tokens 0, 1, 2, ... instead of random ones")
    parser.add_argument("--threads", type=int, default=1, help="of each device, which has as many cores then")
    parser.add_argument("--context", type=int, default=1024, help="positions of a sequence that there is memory for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--part", choices=("head", "device"), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    parser.add_argument("--host", default="", help=argparse.SUPPRESS)
    return parser.parse_args(words or None)


def main() -> None:
    given = arguments()
    if given.part == "device":
        _device(given)
    elif given.part == "head":
        _head(given)
    elif can_emulate():
        _all(given)
    else:
        raise SystemExit("this needs root, `ip` and /dev/net/tun")


# -- the whole ---------------------------------------------------------------------------------------------------------


def _all(given: argparse.Namespace) -> None:
    counts = [int(count) for count in given.devices.split(",")]
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for _ in range(given.rounds):
            for count in counts:
                found[count].append(measured(folder, count, given))
                print(f"{count} devices: {found[count][-1]}", flush=True)
    print("\n| devices | decode tok/s | | prompt tok/s | | sums ms | peak, plan MiB | sent MB | ready s |")
    print("|---|---|---|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for count in counts:
        middle = {key: statistics.median(each[key] for each in found[count]) for key in found[count][0]}
        first = first or middle
        print(
            f"| {count} | {middle['tok_s']:.2f} | {middle['tok_s'] / first['tok_s']:.2f}x "
            f"| {middle['prompt_tok_s']:.1f} | {middle['prompt_tok_s'] / first['prompt_tok_s']:.2f}x "
            f"| {middle['sums_ms']:.1f} | {middle['peak_mib']:.0f}, {middle['plan_mib']:.0f} "
            f"| {middle['sent_mb']:.1f} | {middle['ready_s']:.1f} |"
        )


def measured(folder: Path, count: int, given: argparse.Namespace) -> dict[str, float]:
    """One head with `count` - 1 other devices; peak_mib, plan_mib: of the worker (or of the one device) that took most
    of its plan."""
    names = [f"device{i}of{count}" for i in range(count)]
    homes = acquainted(folder, *names)
    if given.keep is None:
        homes[0].cables.clear()  # they may be others than last time
    limits = Limits(given.cores, parse_size_bytes(given.memory), parse_size_bytes(given.disk), given.model)
    log = folder / f"head-of-{count}.log"  # what it said, for when something goes wrong
    common = [
        str(given.model.resolve()),
        f"--kernels={given.kernels}",
        f"--memory={given.memory}",
        f"--threads={given.threads}",
    ]
    with ExitStack() as stack:
        here = stack.enter_context(lab(folder / "lab", count, delay_s=given.delay / 1e3, bits_per_s=given.rate * 1e6))
        groups = [stack.enter_context(limited(name, limits)) for name in names]
        for device in here.devices:
            share_kernels(device.home)
        workers = []
        for number in range(1, count):
            device, name = here.devices[number], names[number]
            own = ["--part=device", f"--home={folder}", f"--name={name}", f"--host={device.address}"]
            process = stack.enter_context(running(device.start("-m", "benchmarks.cluster", *common, *own)))
            groups[number].enter(process.pid, number, given.threads)
            address = line_with(process, "listening").split()[1]
            workers.append((process.pid, heard_from(process)))
            known = next(home for home in homes if home.identity.name == name)
            homes[0].admit(Member(known.identity.certificate, address))
        own = ["--part=head", f"--home={folder}", f"--name={names[0]}", f"--way={given.way}", f"--wire={given.wire}"]
        own += ["--same-tokens" if given.same_tokens else "--no-same-tokens"]
        own += [
            f"--prompt={given.prompt}",
            f"--tokens={given.tokens}",
            f"--devices={count}",
            f"--context={given.context}",
        ]
        head = stack.enter_context(running(here.devices[0].start("-m", "benchmarks.cluster", *common, *own)))
        groups[0].enter(head.pid, 0, given.threads)
        said: dict[str, float] = json.loads(line_with(head, "tok_s", _HEAD_S, stack.enter_context(log.open("w"))))
        peaks = [(process_peak_bytes(pid), _planned_bytes(lines)) for pid, lines in workers]
        if peaks:
            peak, plan = max(peaks, key=lambda each: each[0] / each[1])
            said |= {"peak_mib": peak / _MIB, "plan_mib": plan / _MIB}
        said["group_peak_mib"] = max(group.peak_bytes for group in groups) / _MIB
        return said


def _planned_bytes(lines: list[str]) -> int:
    """What a device said last of its plan."""
    return next(int(line.split()[1]) for line in reversed(lines) if line.startswith("planned "))


# -- its devices -------------------------------------------------------------------------------------------------------


def _say(event: Event) -> None:
    print(f"planned {event.planned_bytes} {event}" if isinstance(event, ShareOpened) else event, flush=True)


def _device(given: argparse.Namespace) -> None:
    memory_bytes = parse_size_bytes(given.memory)
    work = share_worker(_say, kernels=given.kernels, threads=given.threads, memory_bytes=memory_bytes)
    device = Device(given.name, 1, memory_bytes, given.kernels, "", _RATE)
    server = Server(home_of(given.home, given.name), (given.host, 0), work, lambda job: device, _say)
    print(f"listening {server.address}", flush=True)
    threading.Event().wait()


def _head(given: argparse.Namespace) -> None:
    options = LoadOptions(threads=given.threads, kernels=given.kernels, memory=given.memory, context=given.context)
    began = time.monotonic()
    if int(given.devices) == 1:
        with LLM(
            given.model, threads=given.threads, kernels=given.kernels, memory=given.memory, context=given.context
        ) as llm:
            said = {"ready_s": time.monotonic() - began, "sent_mb": 0.0, **_times(llm.engine.decoder, given)}
            said |= {"plan_mib": llm.engine.plan.expected_bytes / _MIB, "peak_mib": peak_bytes() / _MIB}
            print(json.dumps(said), flush=True)
        return
    home = home_of(given.home, given.name)
    household = _Unprepared(home, _say, way=given.way, wire=given.wire)
    engine, _, release = load_clustered(
        given.model, options, household, own_rate=_RATE, shards=ShardStore(given.home), same_tokens=given.same_tokens
    )
    with LLM.from_engine(engine, release=release) as llm:
        decoder = llm.engine.decoder
        assert isinstance(decoder, GroupDecoder)
        _wait_for_all(decoder, int(given.devices))
        ready = {"ready_s": time.monotonic() - began, "sent_mb": _sent_bytes() / 1e6}
        links = {} if household.links is None else vars(household.links)
        way = WAY_NAMES.index(household.way)
        print(json.dumps({**ready, **_times(decoder, given), **links, "way": way}), flush=True)


def _sent_bytes() -> int:
    """By all networks of this process's namespace."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.split(":")[0].strip() != "lo")


class _Unprepared(Household):
    """It hands out no shards for losses: that is work of a group's first minutes, and would be measured with tokens."""

    def prepare(self, cut: CutWithout, is_busy: Callable[[], bool]) -> None:
        return


def _wait_for_all(decoder: GroupDecoder, count: int) -> None:
    """Who was slow to answer takes part from a later prompt on."""
    end = time.monotonic() + _PATIENCE_S
    while decoder.size < count:
        assert time.monotonic() < end, f"{decoder.size} of {count} devices answer"
        time.sleep(1)
        with suppress(PagesLostError):
            decoder.forward([1], decoder.new_cache(8))


def _times(decoder: Decoder, given: argparse.Namespace) -> dict[str, float]:
    """Medians of tokens, and a prompt; sums_ms: waiting for sums in a token of the head."""
    count, vocabulary = given.prompt + _SETTLE_TOKENS + given.tokens, decoder.spec.vocab_size
    ids = list(range(count)) if given.in_turn else np.random.default_rng(0).integers(3, vocabulary, count).tolist()
    prompt, further = ids[: given.prompt], ids[given.prompt :]
    cache = decoder.new_cache(given.context)
    decoder.forward(prompt[:32], cache)
    cache.release()
    began = time.perf_counter()
    decoder.forward(prompt, cache)
    prompt_s = time.perf_counter() - began
    took, waited, worked = [], [], []
    lockstep = decoder.lockstep if isinstance(decoder, GroupDecoder) else None
    for token in further:
        before = 0.0 if lockstep is None else lockstep.waited_s
        began, computed = time.perf_counter(), time.process_time()
        decoder.forward([token], cache)
        took.append(time.perf_counter() - began)
        worked.append(time.process_time() - computed)
        waited.append(0.0 if lockstep is None else lockstep.waited_s - before)
    token_s = statistics.fmean(took[_SETTLE_TOKENS:])
    sums_ms = 1e3 * statistics.fmean(waited[_SETTLE_TOKENS:])
    cpu_ms = 1e3 * statistics.fmean(worked[_SETTLE_TOKENS:])
    return {"tok_s": 1 / token_s, "prompt_tok_s": given.prompt / prompt_s, "sums_ms": sums_ms, "cpu_ms": cpu_ms}


if __name__ == "__main__":
    main()
