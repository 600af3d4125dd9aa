# SPDX-License-Identifier: Apache-2.0
"""What `trained_digits` has measured: every clip's values, and the tables that follow from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.evaluation.digit_measures import MEASURES, Values
from ardiff_engine.evaluation.intervals import Interval, clips_needed, mean_interval, paired_difference
from ardiff_engine.evaluation.report import HELD, MAX_BYTES, SMALLEST, Table
from ardiff_engine.evaluation.shape_measures import SHAPE_MEASURES
from ardiff_engine.files import write_atomic
from ardiff_engine.parsing import parsing, read_json

MAIN = "position error"
"""The measure that the protocol names; a run counts, and arms are told apart, by it."""
SHOWN = ("position error", "last position error", "velocity error", "bounces", "unsteadiness", "seen", "form")
"""Those of digits and of shapes, in the order of the tables; results hold some of them."""
REBUILT = "reconstructions"
WINDOW = ", window "
"""In the name of an arm, between those of the network and of the frames that are seen."""

Lags = Mapping[int, Values]


@dataclass(frozen=True, slots=True)
class Results:
    """protocol: what was fixed, to be shown. references: of clips that no network made, by row and measure,
    [clips]. runs: by arm, seed, lag and measure, [clips]."""

    protocol: Mapping[str, object]
    references: Mapping[str, Values]
    runs: Mapping[str, Mapping[int, Lags]]

    def values(self, arm: str, lag: int, measure: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        """[seeds, clips]."""
        return np.stack([self.runs[arm][seed][lag][measure] for seed in seeds])

    def seeds(self, *arms: str) -> list[int]:
        """That all of these arms have."""
        return sorted(set.intersection(*(set(self.runs[arm]) for arm in arms)))

    def lags(self) -> list[int]:
        return sorted({lag for runs in self.runs.values() for run in runs.values() for lag in run})

    def measures(self) -> list[str]:
        return [name for name in SHOWN if name in self.references[HELD]]

    def stretches(self) -> list[str]:
        """Names of `digit_measures.stretches`, where the continuations are longer than the position error's
        frames."""
        return [name for name in self.references[HELD] if name not in SHOWN]

    def mean(self, arm: str, lag: int, measure: str) -> Interval:
        return mean_interval(self.values(arm, lag, measure, self.seeds(arm)))

    def advantage(self, arm: str, lag: int, seeds: Sequence[int] | None = None) -> Interval:
        """Position error less that of the last given frame held; below 0 is better."""
        own = self.values(arm, lag, MAIN, self.seeds(arm) if seeds is None else seeds)
        return paired_difference(own, np.broadcast_to(self.references[HELD][MAIN], own.shape))

    def counts(self, arm: str, lag: int) -> bool:
        """Whether the interval of the advantage lies below 0."""
        return self.advantage(arm, lag).high < 0

    def difference(self, one: str, other: str, lag: int, measure: str = MAIN) -> Interval:
        """Paired by seed and clip."""
        seeds = self.seeds(one, other)
        return paired_difference(
            self.values(one, lag, measure, seeds), self.values(other, lag, measure, seeds)
        )

    def tables(self) -> Iterator[Table]:
        """References; each measure by arm and lag; advantages; differences of arms, and of lags."""
        yield self._references()
        for measure in self.measures():
            yield self._measure(measure)
        yield from self._drift()
        yield self._advantages()
        if len(self.runs) > 1:
            for measure in (MAIN, *self.stretches()[1:]):
                yield self._between_arms(measure)
        if len(self.lags()) > 1:
            yield self._between_lags()

    def markdown(self) -> str:
        return "\n\n".join([*(table.markdown() for table in self.tables()), *self.power()])

    def power(self) -> Iterator[str]:
        """What it takes to tell the first two arms apart at each lag."""
        arms = list(self.runs)[:2]
        seeds = self.seeds(*arms)
        if len(arms) < 2 or len(seeds) < 2:
            return
        rows = []
        for lag in self.lags():
            apart = self.values(arms[0], lag, MAIN, seeds) - self.values(arms[1], lag, MAIN, seeds)
            between_clips = float(np.std(apart.mean(axis=0), ddof=1))
            between_seeds = float(np.std(apart.mean(axis=1), ddof=1))
            needed = (clips_needed(deviation, SMALLEST) for deviation in (between_clips, between_seeds))
            rows.append([f"lag {lag}", f"{between_clips:.2f}", f"{between_seeds:.2f}", *map(str, needed)])
        head = [f"{arms[0]} less {arms[1]}", "deviation of clips", "of seeds", "clips needed", "seeds needed"]
        yield Table(head, rows).markdown()

    def save(self, path: Path) -> None:
        """JSON, in which a line is a run."""
        lines = [f'"protocol": {_compact(self.protocol)}']
        lines += [f'"references": {_compact(to_lists(self.references))}']
        runs = [
            _compact([arm, seed, to_lists(lags)])
            for arm, by_seed in self.runs.items()
            for seed, lags in by_seed.items()
        ]
        lines += ['"runs": [\n' + ",\n".join(runs) + "\n]"]
        write_atomic(path, ("{" + ",\n".join(lines) + "}\n").encode())

    @classmethod
    def load(cls, path: Path) -> Results:
        """CheckpointError for another file."""
        values = read_json(path, most=MAX_BYTES)
        with parsing(path, fix="Make it again: python -m ardiff_engine.evaluation.trained_digits."):
            runs: dict[str, dict[int, Lags]] = {}
            for arm, seed, lags in values["runs"]:
                own = {int(lag): to_arrays(measures) for lag, measures in lags.items()}
                runs.setdefault(str(arm), {})[int(seed)] = own
            references = {str(row): to_arrays(own) for row, own in values["references"].items()}
            return cls(dict(values["protocol"]), references, runs)

    def _references(self) -> Table:
        rows = [
            [name, *(shown(mean_interval(own[measure]), measure) for measure in self.measures())]
            for name, own in self.references.items()
        ]
        return Table(["clips that no network made", *self.measures()], rows)

    def _measure(self, measure: str) -> Table:
        lags = self.lags()
        rows = [
            [
                arm,
                *(
                    shown(mean_interval(self.values(arm, lag, measure, self.seeds(arm))), measure)
                    for lag in lags
                ),
            ]
            for arm in self.runs
        ]
        return Table([measure, *self._heads()], rows)

    def _drift(self) -> Iterator[Table]:
        """Position error against the predicted frame."""
        names = self.stretches()
        if not names:
            return
        held = [shown(mean_interval(self.references[HELD][name]), MAIN) for name in names]
        rows = [
            [f"{arm}, lag {lag}", *(shown(self.mean(arm, lag, name), MAIN) for name in names)]
            for arm in self.runs
            for lag in self.lags()
        ]
        yield Table([f"{MAIN} by frame", *names], [["held frame", *held], *rows])

    def _advantages(self) -> Table:
        rows = []
        for arm in self.runs:
            cells = []
            for lag in self.lags():
                alone = sum(self.advantage(arm, lag, [seed]).high < 0 for seed in self.seeds(arm))
                found = shown(self.advantage(arm, lag), MAIN, "+")
                cells.append(f"{found}, {alone} of {len(self.seeds(arm))} runs")
            rows.append([arm, *cells])
        return Table([f"{MAIN} less the held frame's", *self._heads()], rows)

    def _between_arms(self, measure: str) -> Table:
        """Empty where one of the two does not count, unless both are windows of one network."""
        rows = [
            [
                f"{one} less {other}",
                *(
                    shown(self.difference(one, other, lag, measure), MAIN, "+")
                    if same_network(one, other) or (self.counts(one, lag) and self.counts(other, lag))
                    else ""
                    for lag in self.lags()
                ),
            ]
            for one, other in combinations(self.runs, 2)
        ]
        return Table([f"{measure}, paired by clip and seed", *self._heads()], rows)

    def _between_lags(self) -> Table:
        first, *others = self.lags()
        rows = []
        for arm in self.runs:
            base = self.values(arm, first, MAIN, self.seeds(arm))
            later = (self.values(arm, lag, MAIN, self.seeds(arm)) for lag in others)
            rows.append([arm, *(shown(paired_difference(own, base), MAIN, "+") for own in later)])
        return Table([f"{MAIN}, paired", *(f"lag {lag} less lag {first}" for lag in others)], rows)

    def _heads(self) -> list[str]:
        return [f"lag {lag}" for lag in self.lags()]


def same_network(one: str, other: str) -> bool:
    """Whether two arms differ in their windows alone."""
    return WINDOW in one and one.split(WINDOW)[0] == other.split(WINDOW)[0]


def shown(found: Interval, measure: str, sign: str = "") -> str:
    digits = (SHAPE_MEASURES | MEASURES)[measure].digits
    middle = f"{found.mean:{sign}.{digits}f}"
    if math.isnan(found.mean):
        return ""
    if math.isnan(found.low) or found.low == found.high:
        return middle
    return f"{middle} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def to_lists(rows: Mapping[int, Values] | Mapping[str, Values]) -> dict[str, dict[str, list[float | None]]]:
    """For JSON, which has no NaN."""
    return {
        str(row): {
            measure: [None if math.isnan(value) else float(value) for value in clips]
            for measure, clips in own.items()
        }
        for row, own in rows.items()
    }


def to_arrays(own: Mapping[str, Sequence[float | None]]) -> Values:
    return {str(measure): np.array(clips, dtype=np.float64) for measure, clips in own.items()}
