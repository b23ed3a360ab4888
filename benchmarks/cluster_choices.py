"""Whether the planner chooses what is fastest: groups of emulated devices on links of many kinds, and predictions.

    python -m benchmarks.cluster_choices MODEL [--delays 0.1,0.3,1,2,5] [--rates 100,1000] [--devices 2,4]
        [--repeats 1] [--results FILE] [options of benchmarks.cluster]

One device alone is measured once, and gives the devices' rate; the processor time of groups (the smallest ones, lower
quartile of all settings), less their part of that of one alone, gives what a sum costs a device; each setting's links
are what its group measured. Of devices that are a part
of a core (--cores) the planner knows that as their `quota`, as long as each has a core to pause on; where several share
one, none is idle while another waits. In every setting the planner chooses among one device and groups of these sizes;
the choice is right when it is the fastest measured, or within 5 % of it. Needs root. Prints a table in Markdown.

--repeats: all is measured so often, one round after the other, and of each setting the measurement in the middle
counts. --results: what was measured is kept there, a line a measurement, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.cluster import arguments, measured
from edgerun.cluster.links import Links
from edgerun.cluster.plan import Choice, Model, choices, chosen
from edgerun.cluster.profiles import PlannedDevice, Profiles
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_sizes
from edgerun.models import load_spec
from edgerun.models.reductions import reductions
from edgerun.planning.process import elsewhere_bytes
from edgerun.units import parse_size_bytes

_CLOSE = 1.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--delays", default="0.1,0.3,1,2,5", help="one way, in ms")
    parser.add_argument("--rates", default="100,1000", help="in Mb/s")
    parser.add_argument("--devices", default="2,4")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--results", type=Path)
    own, others = parser.parse_known_args()
    counts = [int(count) for count in own.devices.split(",")]
    with tempfile.TemporaryDirectory() as name, open_gguf(own.model) as gguf:
        folder = Path(name)
        given = arguments(str(own.model), "--prompt=64", "--tokens=10", *others)
        process_bytes = elsewhere_bytes(gguf.metadata)
        model = Model(load_spec(gguf), load_sizes(given.kernels), given.context, process_bytes=process_bytes)
        known = _Known(own.results)
        settings = [(delay, speed) for delay in own.delays.split(",") for speed in own.rates.split(",")]
        for turn in range(1, own.repeats + 1):
            known.measure(turn, folder, 1, given)
            for delay, speed in settings:
                given.delay, given.rate = float(delay), float(speed)
                for count in counts:
                    known.measure(turn, folder, count, given)
        alone = known.middle(1, given)
        alone_s = 1 / alone["tok_s"]
        memory_bytes = parse_size_bytes(given.memory)
        at_first = PlannedDevice("", memory_bytes, 1e10, 2e11, 1e9)
        rate = 1e10 * _planned(model, at_first, 1, Links(1, 1, 1, True))[0].token_s / alone_s
        said = []
        for delay, speed in settings:
            given.delay, given.rate = float(delay), float(speed)
            said.append({count: known.middle(count, given) for count in counts})
        sums_s = sorted(_sum_s(model, alone, each[counts[0]], counts[0]) for each in said)
        sum_s = sums_s[len(sums_s) // 4]  # what is more was disturbed
        device = PlannedDevice("", memory_bytes, rate, 20 * rate, 1e9, sum_s)
        print(f"one device: {1e3 * alone_s:.1f} ms a token, {rate / 1e9:.1f} GB/s; a sum: {1e3 * sum_s:.2f} ms\n")
        print(
            "| delay ms | Mb/s | " + " | ".join(f"{n}: predicted, measured ms" for n in counts) + " | chosen | best |"
        )
        print("|---|---|" + "---|" * len(counts) + "---|---|")
        right, off, cores = 0, [], len(os.sched_getaffinity(0))
        for (delay, speed), groups in zip(settings, said, strict=True):
            took, cells = {1: alone_s}, []
            able = _planned(model, device, 1, Links(1, 1, 1, True))
            for count, group in groups.items():
                took[count] = 1 / group["tok_s"]
                links = Links(group["hop_s"], group["byte_s"], group["message_s"], bool(group["is_duplex"]))
                quota = given.cores if given.cores and count <= cores else 1.0
                planned = _planned(model, replace(device, quota=quota), count, links)
                able.append(min((each for each in planned if _size(each) == count), key=lambda choice: choice.token_s))
                off.append(abs(able[-1].token_s / took[count] - 1))
                cells.append(f"{1e3 * able[-1].token_s:.1f}, {1e3 * took[count]:.1f}")
            choice, best = _size(chosen(able)), min(took, key=lambda count: took[count])
            right += took[choice] <= _CLOSE * took[best]
            print(f"| {delay} | {speed} | {' | '.join(cells)} | {choice} | {best} |")
    print(
        f"\n{right} of {len(settings)} choices right; predictions off by {100 * statistics.median(off):.0f} % "
        f"(median), {100 * max(off):.0f} % at most"
    )


class _Known:
    """What was measured already, kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, list[dict[str, float]]] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else []:
            key, said = json.loads(line)
            self._found.setdefault(key, []).append(said)

    def measure(self, turn: int, folder: Path, count: int, given: argparse.Namespace) -> None:
        """As `cluster.measured`, unless there are so many measurements already."""
        found = self._found.setdefault(_key(count, given), [])
        if len(found) >= turn:
            return
        found.append(measured(folder, count, given))
        if self._path is not None:
            with self._path.open("a") as file:
                print(json.dumps([_key(count, given), found[-1]]), file=file)

    def middle(self, count: int, given: argparse.Namespace) -> dict[str, float]:
        """Of those that there are, by the speed."""
        found = sorted(self._found[_key(count, given)], key=lambda said: said["tok_s"])
        return found[len(found) // 2]


def _key(count: int, given: argparse.Namespace) -> str:
    """Links do not matter to one device alone."""
    return f"{count} devices" if count == 1 else f"{count} devices, {given.delay} ms, {given.rate} Mb/s"


def _sum_s(model: Model, alone: dict[str, float], group: dict[str, float], count: int) -> float:
    """What software needs for a sum in a token of so many devices, in s of a device (which has a part of a core)."""
    sums = len(list(reductions(model.spec, 1, 2)))
    more_cpu_ms = group["cpu_ms"] - alone["cpu_ms"] / count
    return max(1e-6, more_cpu_ms / sums / (alone["cpu_ms"] * alone["tok_s"]))


def _planned(model: Model, device: PlannedDevice, count: int, links: Links) -> list[Choice]:
    """What edgerun can run on so many such devices."""
    devices = tuple(replace(device, name=str(number)) for number in range(count))
    return [each for each in choices(model, Profiles(devices, links)) if each.runs]


def _size(choice: Choice) -> int:
    return len(choice.devices)


if __name__ == "__main__":
    main()
