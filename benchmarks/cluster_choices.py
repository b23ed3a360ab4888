"""Whether the planner chooses what is fastest: groups of emulated devices on links of many kinds, and predictions.

    python -m benchmarks.cluster_choices MODEL [--delays 0.1,0.3,1,2,5] [--rates 100,1000] [--devices 2,4]
        [--results FILE] [options of benchmarks.cluster]

One device alone is measured once, and gives the devices' rate; the first group's processor time, less its part of that
of one alone, gives what a sum costs a device; each setting's links are what its group measured. In
every setting the planner chooses among one device and groups of these sizes; the choice is right when it is the
fastest measured, or within 5 % of it. Needs root. Prints a table in Markdown.

--results: what was measured is kept there, a line a measurement, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
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
from edgerun.units import parse_size_bytes

_CLOSE = 1.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--delays", default="0.1,0.3,1,2,5", help="one way, in ms")
    parser.add_argument("--rates", default="100,1000", help="in Mb/s")
    parser.add_argument("--devices", default="2,4")
    parser.add_argument("--results", type=Path)
    own, others = parser.parse_known_args()
    counts = [int(count) for count in own.devices.split(",")]
    with tempfile.TemporaryDirectory() as name, open_gguf(own.model) as gguf:
        folder = Path(name)
        given = arguments(str(own.model), "--prompt=64", "--tokens=10", *others)
        model = Model(load_spec(gguf), load_sizes(given.kernels), 1024)
        known = _Known(own.results)
        alone_s = 1 / known.measured(folder, 1, given)["tok_s"]
        memory_bytes = parse_size_bytes(given.memory)
        at_first = PlannedDevice("", memory_bytes, 1e10, 2e11, 1e9)
        rate = 1e10 * _planned(model, at_first, 1, Links(1, 1, 1, True))[0].token_s / alone_s
        settings = [(delay, speed) for delay in own.delays.split(",") for speed in own.rates.split(",")]
        given.delay, given.rate = (float(each) for each in settings[0])
        sum_s = _sum_s(model, *(known.measured(folder, count, given) for count in (1, counts[0])), counts[0])
        device = PlannedDevice("", memory_bytes, rate, 20 * rate, 1e9, sum_s)
        print(f"one device: {1e3 * alone_s:.1f} ms a token, {rate / 1e9:.1f} GB/s; a sum: {1e3 * sum_s:.2f} ms\n")
        print(
            "| delay ms | Mb/s | " + " | ".join(f"{n}: predicted, measured ms" for n in counts) + " | chosen | best |"
        )
        print("|---|---|" + "---|" * len(counts) + "---|---|")
        right, off = 0, []
        for delay, speed in settings:
            given.delay, given.rate = float(delay), float(speed)
            took, cells, last = {1: alone_s}, [], Links(1, 1, 1, True)
            for count in counts:
                said = known.measured(folder, count, given)
                took[count] = 1 / said["tok_s"]
                last = Links(said["hop_s"], said["byte_s"], said["message_s"], bool(said["is_duplex"]))
                group = [each for each in _planned(model, device, count, last) if _size(each) == count]
                predicted_s = min(each.token_s for each in group)
                off.append(abs(predicted_s / took[count] - 1))
                cells.append(f"{1e3 * predicted_s:.1f}, {1e3 * took[count]:.1f}")
            able = [each for each in _planned(model, device, max(counts), last) if _size(each) in took]
            choice, best = _size(chosen(able)), min(took, key=lambda count: took[count])
            right += took[choice] <= _CLOSE * took[best]
            print(f"| {delay} | {speed} | {' | '.join(cells)} | {choice} | {best} |", flush=True)
    print(
        f"\n{right} of {len(settings)} choices right; predictions off by {100 * statistics.median(off):.0f} % (median)"
    )


class _Known:
    """What was measured already, kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self._found: dict[str, dict[str, float]] = dict(json.loads(line) for line in lines)

    def measured(self, folder: Path, count: int, given: argparse.Namespace) -> dict[str, float]:
        """As `cluster.measured`. Links do not matter to one device alone."""
        key = f"{count} devices" if count == 1 else f"{count} devices, {given.delay} ms, {given.rate} Mb/s"
        if key not in self._found:
            self._found[key] = measured(folder, count, given)
            if self._path is not None:
                with self._path.open("a") as file:
                    print(json.dumps([key, self._found[key]]), file=file)
        return self._found[key]


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
