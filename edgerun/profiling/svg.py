"""Charts as SVG text, for a page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 40


def bars(items: Sequence[tuple[str, float]], unit: str) -> str:
    """Horizontal bars, a name and a value each."""
    most = max((value for _, value in items), default=0.0) or 1.0
    height = 24 * len(items) + 8
    rows = []
    for index, (name, value) in enumerate(items):
        y, width = 6 + 24 * index, 320 * value / most
        rows.append(f'<text x="180" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        rows.append(f'<rect class="bar" x="188" y="{y}" width="{max(1.0, width):.1f}" height="16" rx="2"/>')
        rows.append(f'<text x="{196 + width:.1f}" y="{y + 13}">{_short(value)} {escape(unit)}</text>')
    return _svg(_WIDTH, height, rows)


def line(values: Sequence[float], title: str, *, of: str = "token", low: float | None = None) -> str:
    """A value of every token."""
    if not values:
        return ""
    bottom = min(values) if low is None else low
    top = bottom + 1.1 * max(max(values) - bottom, 1e-12)  # room for the title
    x = [_LEFT + (_WIDTH - _LEFT - _RIGHT) * i / max(1, len(values) - 1) for i in range(len(values))]
    y = [_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - bottom) / (top - bottom) for value in values]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    parts = [*_axes(f"{of}", title), f'<polyline class="line" points="{points}"/>']
    parts += [
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{_short(top)}</text>',
        f'<text x="{_LEFT - 6}" y="{_HEIGHT - _BOTTOM}" text-anchor="end">{_short(bottom)}</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - _BOTTOM + 16}">1</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="end">{len(values)}</text>',
    ]
    return _svg(_WIDTH, _HEIGHT, parts)


def roofline(points: Sequence[tuple[str, float, float]], bandwidth: float, peak: float) -> str:
    """(name, operations a byte, operations/s reached) under a device's roof, both axes logarithmic."""
    ridge = peak / bandwidth
    xs = [intensity for _, intensity, _ in points if intensity > 0] + [ridge]
    ys = [rate for _, _, rate in points if rate > 0] + [peak]
    low_x, high_x = math.log10(min(xs) / 2), math.log10(max(xs) * 3)
    low_y, high_y = math.log10(min(ys) / 3), math.log10(peak * 1.6)

    def place(intensity: float, rate: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(intensity) - low_x) / (high_x - low_x)
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(rate) - low_y) / (high_y - low_y)

    first = 10**low_x
    roof = [place(first, max(10**low_y, first * bandwidth)), place(ridge, peak), place(10**high_x, peak)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in roof)
    parts = [*_axes("operations a byte", "operations/s"), f'<polyline class="roof" points="{path}"/>']
    for exponent in range(math.ceil(low_x), math.floor(high_x) + 1):
        x, _ = place(10**exponent, 10**low_y)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{10**exponent:g}</text>')
    for exponent in range(math.ceil(low_y), math.floor(high_y) + 1):
        _, y = place(first, 10**exponent)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(10.0**exponent)}</text>')
    taken: list[tuple[float, float]] = []
    for name, intensity, rate in points:
        if intensity <= 0 or rate <= 0:
            continue
        x, y = place(intensity, rate)
        label = y + 4
        while any(abs(x - a) < 130 and abs(label - b) < 13 for a, b in taken):
            label += 13
        taken.append((x, label))
        end = x > 0.6 * _WIDTH
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        anchor, dx = ("end", -9) if end else ("start", 9)
        parts.append(f'<text x="{x + dx:.1f}" y="{label:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return _svg(_WIDTH, _HEIGHT, parts)


def _axes(across: str, up: str) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    return [
        f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>',
        f'<text x="{(right + _LEFT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="{_LEFT + 6}" y="{_TOP + 4}">{escape(up)}</text>',
    ]


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _short(value: float) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"
