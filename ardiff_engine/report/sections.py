# SPDX-License-Identifier: Apache-2.0
"""What a report says of each kind of input: an evaluation, a comparison, a training run, a video, a
picture."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ardiff_engine.errors import MediaError
from ardiff_engine.evaluation.digit_measures import MEASURES
from ardiff_engine.evaluation.digit_results import MAIN, Results
from ardiff_engine.evaluation.intervals import mean_interval
from ardiff_engine.evaluation.report import HELD, Report, Table
from ardiff_engine.media import contact_sheet, open_video
from ardiff_engine.parsing import check_regular, read_bounded, read_json
from ardiff_engine.plan import LagPlan
from ardiff_engine.plan.picture import draw
from ardiff_engine.report.chart import Line, line_chart
from ardiff_engine.report.page import KINDS, Page
from ardiff_engine.training.log import read_log
from ardiff_engine.training.throughput import SPEED

COMPARISON = "trained_digits"
EVALUATION, LOG, SETTINGS = "evaluation.json", "training_log.jsonl", "training_config.json"
EMBEDDED = 4 << 20
"""Bytes: of a video that is played on the page, beside its contact sheet."""
PICTURES = (".png", ".jpg")
VIDEOS = (".mp4", ".webp", ".gif", ".avi", ".mov", ".mkv", ".webm")
SHEET_FRAMES = 16
SMOOTHED = 200
"""Points of a training curve, at most: each the mean of its share of the log."""
LOGGED = ("step", "lr", *SPEED)
MEASURED = ("gradient_norm", "psnr", "latent_spread")
"""Ends of names in a log that are no losses."""

Section = Callable[[Page, Path], None]


def find_section(path: Path) -> Section:
    """The section that shows an input.

    Raises:
        MediaError: nothing that a report can show.
    """
    if (path / EVALUATION).is_file() or path.name == EVALUATION:
        return add_evaluation
    if any(path.glob(f"{COMPARISON}*.json")):
        return add_comparisons
    if path.name.startswith(COMPARISON) and path.suffix == ".json":
        return add_comparison
    if (path / LOG).is_file():
        return add_training
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return add_video
    if path.is_file() and path.suffix.lower() in PICTURES:
        return add_picture
    raise MediaError(
        f"{path}: nothing that a report can show. Give folders with {EVALUATION}, {COMPARISON}*.json or "
        f"{LOG}, videos ({', '.join(VIDEOS)}) or pictures ({', '.join(PICTURES)})."
    )


def add_evaluation(page: Page, path: Path) -> None:
    """Tables, position errors by frame with their intervals, and the plan of each lag."""
    report = Report.load(path / EVALUATION if path.is_dir() else path)
    page.heading(f"Evaluation: {path}")
    page.command("python -m ardiff_engine.evaluation")
    page.paragraph(report.summary())
    for table in report.tables():
        _add_table(page, table)
    page.paragraph(report.power())
    rows = [(name, measure.text, " or ".join(measure.finds)) for name, measure in MEASURES.items()]
    page.table(("measure", "is", "finds clips that are"), rows, folded="What the measures say")
    lines = []
    for row in map(report.row, ("reconstructions", HELD, *report.generated)):
        around = [mean_interval(clips) for clips in row.position_errors.T]
        points = [(frame + 1.0, found.mean) for frame, found in enumerate(around)]
        lines.append(Line(row.name, points, [(found.low, found.high) for found in around]))
    chart = line_chart(lines, "predicted frame", "position error (px)")
    page.figure(chart, "Distance of the digit from where it is. Bands: 95 % intervals over clips.")
    for name in report.generated:
        lag, frames = int(name.split()[-1]), report.row(name).frames
        write = partial(draw, LagPlan(frames, report.steps, lag))
        page.media(_drawn(write), ".png", f"The plan of {name}")


def add_comparisons(page: Page, folder: Path) -> None:
    """Those of a folder: of trainings, of windows, of shapes."""
    for path in sorted(folder.glob(f"{COMPARISON}*.json")):
        add_comparison(page, path)


def _protocol(results: Results) -> str:
    """What the command calls it. Results of before there were several say nothing of windows or of a
    world."""
    if results.protocol.get("world", "digits") != "digits":
        return str(results.protocol["world"])
    if results.protocol.get("windows"):
        return "windows"
    return "predictions" if len({name.partition(" ")[2] for name in results.runs}) > 1 else "rules"


def add_comparison(page: Page, path: Path) -> None:
    """What networks trained with different rules make: the position error by lag, and all tables."""
    results = Results.load(path)
    page.heading(f"Comparison of trainings: {path}")
    page.command(f"python -m ardiff_engine.evaluation.{COMPARISON} --protocol {_protocol(results)}")
    page.table(("protocol", "value"), _flat(results.protocol), folded="Protocol")
    lags = results.lags()
    around = {arm: [results.mean(arm, lag, MAIN) for lag in lags] for arm in results.runs}
    around["the last given frame held"] = [mean_interval(results.references[HELD][MAIN])] * len(lags)
    lines = [
        Line(
            name,
            [(lag, found.mean) for lag, found in zip(lags, own, strict=True)],
            [(f.low, f.high) for f in own],
        )
        for name, own in around.items()
    ]
    chart = line_chart(lines, "lag", f"{MAIN} (px)")
    page.figure(
        chart, "Distance from where the digit or shape is. Bands: 95 % intervals over seeds and clips."
    )
    for table in results.tables():
        _add_table(page, table)


def add_training(page: Page, path: Path) -> None:
    """Losses by step, learning rate and throughput, and the settings."""
    page.heading(f"Training: {path}")
    entries = read_log(path / LOG)
    names = sorted({name for entry in entries for name in entry if name not in LOGGED})
    curves = [Line(name, _curve(entries, name)) for name in names if not name.endswith(MEASURED)]
    page.figure(
        line_chart(curves, "step", "loss", logarithmic=True), "Losses, each point a mean of its neighbours."
    )
    for name in names:
        if name.startswith("validation_") and name.endswith(MEASURED):
            page.figure(line_chart([Line(name, _curve(entries, name))], "step", name), f"{name}.")
    for name, unit in (("lr", "learning rate"), ("steps_per_second", "steps per second")):
        page.figure(line_chart([Line(name, _curve(entries, name))], "step", unit), unit.capitalize() + ".")
    if (path / SETTINGS).is_file():
        rows = [(key, value) for key, value in _flat(read_json(path / SETTINGS)) if value != "None"]
        page.table(("setting", "value"), rows, folded="Settings")


def add_video(page: Page, path: Path) -> None:
    """Its frames beside each other, and the video itself where it is small and browsers play it."""
    page.heading(f"Video: {path}")
    video = open_video(path)
    chosen = np.linspace(0, video.frames - 1, min(SHEET_FRAMES, video.frames)).round().astype(int)
    frames = np.stack([next(islice(video.play(int(first)), 1)) for first in chosen])
    sheet = _drawn(lambda target: contact_sheet([frames], [path.name], target, columns=len(frames)))
    page.media(
        sheet,
        ".png",
        f"{len(frames)} of {video.frames} frames, {video.width} x {video.height}, evenly spaced",
    )
    suffix = path.suffix.lower()
    if suffix in KINDS and check_regular(path, MediaError) <= EMBEDDED:
        page.media(read_bounded(path, EMBEDDED, MediaError), suffix, path.name)


def add_picture(page: Page, path: Path) -> None:
    page.heading(f"Picture: {path}")
    page.media(read_bounded(path, EMBEDDED, MediaError), path.suffix.lower(), path.name)


def _add_table(page: Page, table: Table) -> None:
    page.table(table.head, table.rows)


def _curve(entries: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    pairs = [(entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), (int, float))]
    groups = np.array_split(np.array(pairs, dtype=np.float64), min(SMOOTHED, len(pairs))) if pairs else []
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(values, dict):
        return [(prefix, str(values))]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}".lstrip("."))]


def _drawn(write: Callable[[Path], object]) -> bytes:
    """The bytes of a picture that is written to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        write(path)
        return path.read_bytes()
