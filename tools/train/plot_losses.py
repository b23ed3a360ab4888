"""Draw the losses.csv of training runs as one SVG: the training loss smoothed, the held-out loss as measured.

    python tools/train/plot_losses.py build/tales-moe/losses.csv build/tales-draft/losses.csv --output models/tales.svg

Needs nothing but Python.
"""

import argparse
import csv
import math
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 400, 48
COLOURS = ("#1b6ca8", "#c2571a", "#3a7d44", "#7a3e9d")
SMOOTHING = 0.98
LOWEST_STEP = 20  # before that the loss falls off the top

Points = list[tuple[float, float]]


def read(runs: str) -> tuple[Points, Points]:
    """(step, smoothed training loss) and (step, held-out loss) of one run after the other."""
    train: Points = []
    held: Points = []
    mean, n = 0.0, 0
    for path in runs.split("+"):
        before = n
        with Path(path).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                n += 1
                mean = SMOOTHING * mean + (1 - SMOOTHING) * float(row["train_loss"])
                train.append((n, mean / (1 - SMOOTHING**n)))
                if row["held_out_loss"]:
                    held.append((before + float(row["step"]), float(row["held_out_loss"])))
    return [p for p in train if p[0] >= LOWEST_STEP], held


def polyline(points: Points, to_x: float, low: float, to_y: float, style: str) -> str:
    at = " ".join(f"{MARGIN + x * to_x:.1f},{HEIGHT - MARGIN - (y - low) * to_y:.1f}" for x, y in points)
    return f'<polyline fill="none" {style} points="{at}"/>'


def draw(runs: dict[str, tuple[Points, Points]]) -> str:
    every = [p for train, held in runs.values() for p in train + held]
    last = max(x for x, _ in every)
    low, high = math.floor(min(y for _, y in every)), math.ceil(max(y for _, y in every))
    to_x, to_y = (WIDTH - 2 * MARGIN) / last, (HEIGHT - 2 * MARGIN) / (high - low)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y in range(low, high + 1):
        at = HEIGHT - MARGIN - (y - low) * to_y
        out.append(
            f'<path stroke="#ddd" d="M{MARGIN} {at:.1f}H{WIDTH - MARGIN}"/><text x="28" y="{at + 4:.1f}">{y}</text>'
        )
    for x in range(0, int(last) + 1, 500):
        out.append(f'<text x="{MARGIN + x * to_x:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{x}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    out.append('<text x="12" y="24">loss, nats per token (thin: training, with dropout; thick: held out)</text>')
    for i, (name, (train, held)) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        out.append(polyline(train, to_x, low, to_y, f'stroke="{colour}" stroke-opacity="0.5"'))
        out.append(polyline(held, to_x, low, to_y, f'stroke="{colour}" stroke-width="2.5"'))
        out.append(f'<text x="{WIDTH - 150}" y="{MARGIN + 18 * i}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "losses", nargs="+", help="each is named after its (first) directory; A.csv+B.csv: B went on where A ended"
    )
    p.add_argument("--output", type=Path, required=True)
    args = p.parse_args()
    runs = {Path(each.split("+")[0]).parent.name: read(each) for each in args.losses}
    args.output.write_text(draw(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
