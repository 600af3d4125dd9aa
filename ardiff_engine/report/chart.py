# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG, with a band around a line where its interval is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 200, 16, 44
COLOURS = ("#2f6fb7", "#d1622b", "#3a8f5c", "#8a4fa3", "#b58a16", "#c2436b", "#4b8f9e", "#6b6b76")
TICKS = 5
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y) in order of x. band: (low, high) of each point, or empty."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def line_chart(lines: Sequence[Line], across: str, up: str, *, logarithmic: bool = False) -> str:
    """One <svg>. Points that are not finite are left out, on a logarithmic axis also those that are not above
    0; "" where nothing is left."""
    kept = [line for line in (_drawable(line, logarithmic) for line in lines) if line.points]
    if not kept:
        return ""
    high_low = [v for line in kept for pair in (line.band or [(y, y) for _, y in line.points]) for v in pair]
    xs = [x for line in kept for x, _ in line.points]
    x_axis = _Axis.around(xs, LEFT, WIDTH - RIGHT, logarithmic=False, from_zero=False)
    y_axis = _Axis.around(high_low, HEIGHT - BOTTOM, TOP, logarithmic, from_zero=True)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(up)} by {escape(across)}">',
        *_grid(x_axis, y_axis, across, up),
    ]
    for index, line in enumerate(kept):
        parts += _drawn(line, COLOURS[index % len(COLOURS)], x_axis, y_axis, TOP + 8 + 20 * index)
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, logarithmic: bool, *, from_zero: bool
    ) -> _Axis:
        low, high = min(values), max(values)
        if from_zero and not logarithmic:
            low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            low, high = (low / 2, high * 2) if logarithmic else (low - 0.5, high + 0.5)
        return cls(low, high, start, end, logarithmic)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            return [tick for tick in every if self.low <= tick <= self.high]
        rough = (self.high - self.low) / TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in STEPS if unit * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * index for index in range(first, last + 1)]


def _drawable(line: Line, logarithmic: bool) -> Line:
    def fine(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not logarithmic)

    rows = [
        (point, around)
        for point, around in zip(line.points, line.band or line.points, strict=True)
        if math.isfinite(point[0]) and fine(point[1]) and (not line.band or all(map(fine, around)))
    ]
    return Line(line.name, [point for point, _ in rows], [around for _, around in rows] if line.band else ())


def _grid(x_axis: _Axis, y_axis: _Axis, across: str, up: str) -> Iterator[str]:
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in x_axis.ticks():
        x, y = x_axis.place(tick), HEIGHT - BOTTOM + 18
        yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{tick:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>'
    turned = f"rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2})"
    yield (
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" transform="{turned}">'
        f"{escape(up)}</text>"
    )


def _drawn(line: Line, colour: str, x_axis: _Axis, y_axis: _Axis, legend: float) -> Iterator[str]:
    if line.band:
        upper = [(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
        lower = [(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
        outline = _path([*upper, *reversed(lower)], x_axis, y_axis)
        yield f'<polygon points="{outline}" fill="{colour}" fill-opacity="0.13"/>'
    points = _path(line.points, x_axis, y_axis)
    yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
    if len(line.points) <= 40:
        for x, y in line.points:
            yield (
                f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3" fill="{colour}">'
                f"<title>{escape(line.name)}: {y:g} at {x:g}</title></circle>"
            )
    edge = WIDTH - RIGHT + 16
    yield f'<rect x="{edge}" y="{legend - 2}" width="18" height="3" fill="{colour}"/>'
    yield f'<text x="{edge + 26}" y="{legend + 4}">{escape(line.name)}</text>'


def _path(points: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis) -> str:
    return " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in points)
