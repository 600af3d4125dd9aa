# SPDX-License-Identifier: Apache-2.0
"""The evaluation of videos of moving digits: every clip's values, and tables with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.digit_measures import (
    CONTINUATION_MEASURES,
    FIRST,
    MEASURES,
    VIDEO_MEASURES,
    Measure,
    Values,
)
from ardiff_engine.evaluation.intervals import Interval, clips_needed, mean_interval, paired_difference
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.parsing import parsing, read_json

HELD = "frozen"
"""The row that a model must beat: the last given frame held."""
COMPARED = ("position error", "velocity error", "bounces", "constant", "unsteadiness")
MAX_BYTES = 1 << 26
SMALLEST = 0.2
"""Pixels: the difference of position errors that the number of clips is computed for."""


@dataclass(frozen=True, slots=True)
class Table:
    """head, and rows of as many cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True, slots=True)
class Row:
    """One source of videos.

    Args:
        frames: of its videos. seconds: wall time of all of them.
        videos: measures of generated videos; clip n of every row has class n % 10 or is the real clip n.
        continuations: measures of continued held-out clips, the same ones in every row.
        position_errors: [clips][predicted frames], pixels.
    """

    name: str
    frames: int
    seconds: float
    videos: Values
    continuations: Values
    position_errors: NDArray[np.float64] = field(repr=False)

    def values(self, measure: str) -> NDArray[np.float64] | None:
        """Of each clip; None where the row has no such measure."""
        return self.videos.get(measure, self.continuations.get(measure))

    def to_json(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "frames": self.frames,
            "seconds": round(self.seconds, 1),
            "videos": {name: _numbers(values) for name, values in self.videos.items()},
            "continuations": {name: _numbers(values) for name, values in self.continuations.items()},
            "position_errors": [_numbers(clip) for clip in self.position_errors],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """rows: real clips, reconstructions, spoiled clips, then one row per lag, named in `generated`."""

    classifier_accuracy: float
    given: int
    steps: int
    rows: tuple[Row, ...]
    generated: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """evaluation.json, with the values of each clip, and evaluation.md."""
        make_folder(folder)
        values = {
            "classifier_accuracy": self.classifier_accuracy,
            "given": self.given,
            "steps": self.steps,
            "rows": [row.to_json() for row in self.rows],
            "generated": self.generated,
        }
        write_atomic(folder / "evaluation.json", (json.dumps(values) + "\n").encode())
        write_atomic(folder / "evaluation.md", self.markdown().encode())

    def row(self, name: str) -> Row:
        """The row of that name. Raises ConfigError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"row: got {name!r}, expected one of {', '.join(row.name for row in self.rows)}.")

    @classmethod
    def load(cls, path: Path) -> Report:
        """From its evaluation.json. CheckpointError for another file."""
        values = read_json(path, most=MAX_BYTES)
        with parsing(path, fix="Make it again: python -m ardiff_engine.evaluation."):
            rows = tuple(_row(row) for row in values["rows"])
            return cls(
                float(values["classifier_accuracy"]),
                int(values["given"]),
                int(values["steps"]),
                rows,
                tuple(map(str, values["generated"])),
            )

    def summary(self) -> str:
        videos, clips = len(self.rows[0].videos["speed"]), len(self.rows[0].position_errors)
        return (
            f"Classifier accuracy on held-out scans: {self.classifier_accuracy:.1%}. Solver steps: "
            f"{self.steps}. {videos} videos and {clips} continuations per row, which see {self.given} real "
            "frames. Brackets: 95 % intervals over clips."
        )

    def tables(self) -> tuple[Table, ...]:
        """Measures of videos, of continuations, position errors by frame, paired differences."""
        return (
            self._measures("videos", VIDEO_MEASURES),
            self._measures("continuations", CONTINUATION_MEASURES),
            self._errors_by_frame(),
            self._differences(),
        )

    def markdown(self) -> str:
        blocks = [self.summary(), *(table.markdown() for table in self.tables()), self.power()]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def power(self) -> str:
        """What this run could have found; empty for a single lag."""
        rows = [self.row(name).values("position error") for name in self.generated[:2]]
        first, second = [*rows, None, None][:2]
        if first is None or second is None or len(first) < 2:
            return ""
        paired = clips_needed(float(np.std(first - second, ddof=1)), SMALLEST)
        apart = clips_needed(float(np.std(first, ddof=1)), SMALLEST, paired=False)
        return (
            f"A difference of {SMALLEST} px in position error between {self.generated[0]} and "
            f"{self.generated[1]} is found, with a power of 80 %, by {paired} clips that both continue, or "
            f"by {apart} in each arm where they continue different ones."
        )

    def _measures(self, name: str, measures: Mapping[str, Measure]) -> Table:
        rows = [
            (row.name, *(_shown(row.values(measure), measures[measure]) for measure in measures))
            for row in self.rows
        ]
        return Table((name, *measures), rows)

    def _errors_by_frame(self) -> Table:
        """Means of predicted frames 1 .. 8; empty where a row predicts fewer."""
        rows = []
        for row in self.rows:
            means = [f"{value:.2f}" for value in row.position_errors.mean(axis=0)[:FIRST]]
            rows.append((row.name, *means, *[""] * (FIRST - len(means))))
        return Table(("position error in predicted frame", *map(str, range(1, FIRST + 1))), rows)

    def _differences(self) -> Table:
        """Each lag less the held frame, and less each lag before it, clip by clip. No measures of videos
        where the lengths differ, or against the held frame, whose videos have other classes."""
        generated = [self.row(name) for name in self.generated]
        pairs = [(row, self.row(HELD)) for row in generated]
        pairs += [(row, base) for base, row in combinations(generated, 2)]
        rows = [
            (f"{row.name} less {base.name}", *(_difference(row, base, measure) for measure in COMPARED))
            for row, base in pairs
        ]
        return Table(("difference, paired by clip", *COMPARED), rows)


def _difference(row: Row, base: Row, measure: str) -> str:
    one, other = row.values(measure), base.values(measure)
    unlike = measure in VIDEO_MEASURES and (row.frames != base.frames or base.name == HELD)
    if one is None or other is None or unlike:
        return ""
    return _interval(paired_difference(one, other), MEASURES[measure].digits, "+")


def _shown(values: NDArray[np.float64] | None, measure: Measure) -> str:
    return "" if values is None else _interval(mean_interval(values), measure.digits)


def _interval(found: Interval, digits: int, sign: str = "") -> str:
    if math.isnan(found.mean):
        return ""
    if math.isnan(found.low) or found.low == found.high:
        return f"{found.mean:{sign}.{digits}f}"
    return f"{found.mean:{sign}.{digits}f} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def _row(values: Mapping[str, Any]) -> Row:
    def arrays(measures: Mapping[str, Sequence[float | None]]) -> Values:
        return {str(name): np.array(clips, dtype=np.float64) for name, clips in measures.items()}

    errors = np.array(values["position_errors"], dtype=np.float64)
    videos, continuations = arrays(values["videos"]), arrays(values["continuations"])
    return Row(
        str(values["name"]), int(values["frames"]), float(values["seconds"]), videos, continuations, errors
    )


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if math.isnan(value) else round(float(value), 5) for value in values]
