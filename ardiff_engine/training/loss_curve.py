# SPDX-License-Identifier: Apache-2.0
"""A picture of the training log: loss over steps, both axes labelled, loss logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ardiff_engine.files import write_atomic

SIZE = (960, 540)
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 40, 60
COLOURS = {"loss": "#4477aa", "validation_loss": "#cc3311"}
SMOOTHING = 50


def draw_loss_curve(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """PNG of "loss" (raw and smoothed) and "validation_loss"; nothing is written while there are fewer than
    two points."""
    curves = {name: [(e["step"], e[name]) for e in entries if _drawable(e.get(name))] for name in COLOURS}
    points = [point for curve in curves.values() for point in curve]
    if len(points) < 2:
        return
    last = max(step for step, _ in points)
    low = math.log10(min(value for _, value in points))
    high = max(math.log10(max(value for _, value in points)), low + 0.1)
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (SIZE[0] - LEFT - RIGHT) * step / max(1, last)
        y = TOP + (SIZE[1] - TOP - BOTTOM) * (high - math.log10(value)) / (high - low)
        return x, y

    for index in range(6):
        value = 10 ** (low + (high - low) * index / 5)
        step = last * index / 5
        draw.line([place(0, value), place(last, value)], fill="#dddddd")
        draw.text((10, place(0, value)[1] - 6), f"{value:.3g}", fill="black")
        draw.text((place(step, 10**low)[0] - 15, SIZE[1] - BOTTOM + 10), f"{step:.0f}", fill="black")
    draw.text((SIZE[0] // 2 - 15, SIZE[1] - 25), "step", fill="black")
    for index, (name, curve) in enumerate(curves.items()):
        draw.text((LEFT + 150 * index, 12), name, fill=COLOURS[name])
        if name == "loss" and len(curve) > 1:
            draw.line([place(*point) for point in curve], fill="#bbccdd")
            curve = _smooth(curve)
        if len(curve) > 1:
            draw.line([place(*point) for point in curve], fill=COLOURS[name], width=2)
    write_atomic(path, lambda file: image.save(file, format="PNG"))


def _drawable(value: object) -> bool:
    """On a logarithmic axis: positive numbers. A run that diverges logs NaN as well."""
    return isinstance(value, int | float) and 0 < value < math.inf


def _smooth(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    window = max(1, min(SMOOTHING, len(curve) // 5))
    means = []
    for end in range(len(curve)):
        part = [value for _, value in curve[max(0, end - window + 1) : end + 1]]
        means.append((curve[end][0], sum(part) / len(part)))
    return means
