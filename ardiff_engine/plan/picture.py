# SPDX-License-Identifier: Apache-2.0
"""The picture of a plan: frames across, ticks down, one cell per (tick, frame).

Strong colours are cells that move: dark for noise, light for nearly clean. Pale cells do not: grey for frames
that wait, green for finished ones, violet for frames that pause.
Long plans get smaller cells; beyond 2 pixels per cell the whole grid is scaled down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ardiff_engine import arguments
from ardiff_engine.errors import MediaError, PlanError, explain
from ardiff_engine.media.staging import staged
from ardiff_engine.plan.walk import Walk

if TYPE_CHECKING:
    from ardiff_engine.diffusion.solvers import Solver

Colour = tuple[int, int, int]

INK: Colour = (38, 38, 46)
FAINT: Colour = (112, 112, 124)
PAPER: Colour = (255, 255, 255)
WAITING: Colour = (237, 237, 241)
FINISHED: Colour = (222, 240, 226)
PAUSED: Colour = (224, 212, 240)

GRID_CAP = (1100, 1400)
CELL_SIZES = ((2, 36), (2, 14))
MARGIN = 24
AXIS_WIDTH = 62
AXIS_HEIGHT = 46
LEGEND_WIDTH = 210
BAR_HEIGHT = 220


def draw(
    plan: Walk, path: str | PathLike[str], *, solver: Solver | None = None, num_ticks: int | None = None
) -> None:
    """Write the picture of a plan, or of its first `num_ticks` ticks, as a PNG.

    With a solver the colours are its timesteps, without one the steps still to do. The file appears whole or
    not at all; missing folders are made.
    PlanError: an endless plan without `num_ticks`, no ticks to draw, a solver with other steps.
    MediaError: a name that does not end in .png, a disk that refuses.
    """
    target = check_picture(path)
    if plan.shape(num_ticks)[0] == 0:
        raise PlanError(
            explain("nothing to draw", got="0 ticks", expected="1 or more", fix="Draw a plan that has ticks.")
        )
    noise, scale = _noise_left(plan, solver, num_ticks)
    updates = plan.updates(num_ticks)
    colours = _paint(plan, noise, updates)
    entries = [("moves", MOVES), ("waits", WAITING), ("finished", FINISHED)]
    if (colours == PAUSED).all(axis=2).any():
        entries.append(("pauses", PAUSED))
    page, _ = compose(
        colours,
        (_heading(plan, num_ticks), _counts(updates)),
        "tick",
        scale,
        entries,
    )
    with staged(target) as temporary:
        page.save(temporary, format="PNG")


class Scale(NamedTuple):
    """The colour bar: its title, the highest number, and whether that stands for clean frames."""

    title: str
    top: float
    rises: bool = False


def compose(
    colours: npt.NDArray[np.uint8],
    lines: tuple[str, str],
    row_name: str,
    scale: Scale,
    entries: Sequence[tuple[str, Colour]],
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The page of a grid of cells [rows, frames, 3], and where the grid lies on it: left, top, width, height.

    lines: heading and what stands below it. entries: names of colours.
    """
    grid = _enlarge(colours)
    left, above = MARGIN + AXIS_WIDTH, MARGIN + 58 + AXIS_HEIGHT
    width = max(left + grid.width + 32 + LEGEND_WIDTH, 2 * MARGIN + max(map(_text_width, lines, (22, 15))))
    page = Image.new("RGB", (width, max(above + grid.height, above + 430) + MARGIN), PAPER)
    page.paste(grid, (left, above))
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 4), lines[0], INK, font(22))
    pen.text((MARGIN, MARGIN + 26), lines[1], FAINT, font(15))
    _axes(pen, left, above, grid.size, colours.shape[:2], row_name)
    _legend(pen, left + grid.width + 32, above, scale, entries)
    return page, (left, above, *grid.size)


def check_picture(path: str | PathLike[str]) -> Path:
    """Refuses, before anything is computed, a name that is not that of a .png file."""
    target = arguments.path("path", path)
    if target.suffix.lower() != ".png" or target.is_dir():
        raise MediaError(
            explain(
                "picture of a plan",
                got=repr(str(path)),
                expected="the name of a file that ends in .png",
                fix="Change the name.",
            )
        )
    return target


def ramp(noise: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """uint8 [..., 3] for noise in 0..1: from deep blue (1) over teal to yellow (0).

    Lightness is linear in Oklab (Ottosson 2020): equal steps of noise look equally far apart, in grey too.
    Hue falls from 288 to 110 degrees; chroma stays just inside sRGB, which is narrowest at teal.
    """
    clean = 1 - np.clip(noise, 0, 1)
    hue = np.radians(288 - 178 * clean)
    chroma = 0.09 + 0.28 * (clean - 0.4) ** 2
    lightness = 0.27 + 0.64 * clean
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    to_cone = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.291485548],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip((lab @ to_cone.T) ** 3 @ to_rgb.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


MOVES: Colour = tuple(ramp(np.array(0.45)).tolist())


def _noise_left(
    plan: Walk, solver: Solver | None, num_ticks: int | None
) -> tuple[npt.NDArray[np.float64], Scale]:
    """Noise of every cell in 0..1 during its tick, and what shows it."""
    if solver is not None:
        rises = bool(solver.timesteps[-1] > solver.timesteps[0])
        top = max(float(solver.timesteps.max()), solver.waiting_timestep, 1.0)
        share = plan.timesteps(solver, num_ticks) / top
        return 1 - share if rises else share, Scale("timestep fed", top, rises)
    before = plan.levels(num_ticks) - plan.updates(num_ticks)
    return 1 - before / _steps(plan, before.shape[1]), Scale("steps still to do", float(plan.num_steps))


def _steps(plan: Walk, frames: int) -> npt.NDArray[np.int64]:
    return np.array([plan.steps(frame) for frame in range(frames)], np.int64)


def _paint(
    plan: Walk, noise: npt.NDArray[np.float64], updates: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    levels = plan.levels(len(updates))
    colours = np.empty((*updates.shape, 3), dtype=np.uint8)
    colours[:] = PAUSED
    colours[levels == 0] = WAITING
    colours[levels == _steps(plan, levels.shape[1])] = FINISHED
    colours[updates] = ramp(noise)[updates]
    return colours


def _enlarge(colours: npt.NDArray[np.uint8]) -> Image.Image:
    rows, columns = colours.shape[:2]
    width, height = (
        min(max(cap // max(count, 1), low), high)
        for cap, count, (low, high) in zip(GRID_CAP, (columns, rows), CELL_SIZES, strict=True)
    )
    pixels = colours.repeat(height, axis=0).repeat(width, axis=1)
    if width >= 6:
        pixels[:, width - 1 :: width] = PAPER
    if height >= 5:
        pixels[height - 1 :: height] = PAPER
    grid = Image.fromarray(pixels)
    return grid.resize((min(grid.width, GRID_CAP[0]), min(grid.height, GRID_CAP[1])), Image.Resampling.BOX)


def _axes(
    pen: ImageDraw.ImageDraw,
    left: int,
    above: int,
    size: tuple[int, int],
    shape: tuple[int, ...],
    row_name: str,
) -> None:
    rows, columns = shape
    cell_width, cell_height = size[0] / columns, size[1] / rows
    pen.text((left, above - 42), "frame", INK, font(15))
    pen.text((left - 10, above - 22), row_name, INK, font(15), anchor="ra")
    for column in range(0, columns, _stride(cell_width, 26)):
        x = left + (column + 0.5) * cell_width
        pen.line([(x, above - 5), (x, above - 2)], FAINT)
        pen.text((x, above - 7), str(column), FAINT, font(12), anchor="ms")
    for row in range(0, rows, _stride(cell_height, 30)):
        y = above + (row + 0.5) * cell_height
        pen.line([(left - 6, y), (left - 3, y)], FAINT)
        pen.text((left - 9, y), str(row), FAINT, font(12), anchor="rm")


def _legend(
    pen: ImageDraw.ImageDraw,
    x: int,
    y: int,
    scale: Scale,
    entries: Sequence[tuple[str, Colour]],
) -> None:
    title, top, rises = scale
    pen.text((x, y), title, INK, font(15))
    y += 28
    shades = ramp(np.linspace(1, 0, BAR_HEIGHT))
    for offset, shade in enumerate(shades.tolist()):
        pen.line([(x, y + offset), (x + 25, y + offset)], tuple(shade))
    for value in sorted({round(top * part) for part in (0, 0.25, 0.5, 0.75, 1)}):
        level = y + (value / top if rises else 1 - value / top) * (BAR_HEIGHT - 1)
        pen.line([(x + 26, level), (x + 30, level)], FAINT)
        pen.text((x + 35, level), str(value), FAINT, font(13), anchor="lm")
    pen.text((x + 84, y), "noise", FAINT, font(13), anchor="lm")
    pen.text((x + 84, y + BAR_HEIGHT - 1), "clean", FAINT, font(13), anchor="lm")
    y += BAR_HEIGHT + 24
    for name, colour in entries:
        pen.rectangle([x, y, x + 25, y + 15], fill=colour)
        pen.text((x + 35, y + 8), name, INK, font(14), anchor="lm")
        y += 26


def _heading(plan: Walk, num_ticks: int | None) -> str:
    ticks = plan.num_ticks if num_ticks is None else num_ticks
    cut = "" if ticks == plan.num_ticks else "first "
    return f"{plan.summary} \N{MIDDLE DOT} {cut}{ticks} ticks"


def _counts(updates: npt.NDArray[np.bool_]) -> str:
    moved = int(updates.sum())
    return f"{moved} cells move, {moved / max(updates.size, 1):.0%} of all frames in all ticks"


def _stride(cell: float, room: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … cells that leaves `room` pixels between labels."""
    steps = (base * 10**power for power in range(9) for base in (1, 2, 5))
    return next(step for step in steps if step * cell >= room or step > 10**7)


def _text_width(text: str, size: int) -> int:
    return math.ceil(font(size).getlength(text))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
