# SPDX-License-Identifier: Apache-2.0
"""How sure a mean is, and a difference of two: percentile bootstrap over clips.

Two arms that share their clips (and noise) are compared clip by clip: most of what differs between clips
falls out of the difference, so that a few dozen clips do where hundreds would be needed otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ardiff_engine.errors import ConfigError, TensorError

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """mean of the values, and the bounds that hold 95 % of the means of resampled values."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def mean_interval(values: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Of independent values, NaN left out; all three NaN where nothing is left, the mean alone for one value.

    Args:
        values: one per clip, or [seeds, clips]: then seeds and clips are drawn anew, each with
            replacement, as a new run with new seeds would draw both.
        seed: of the resampling, so that a report can be made again.

    Raises:
        TensorError: values of more than two dimensions.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2):
        raise TensorError(
            f"values: got shape {table.shape}, expected [clips] or [seeds, clips]. Average the rest first."
        )
    if np.isnan(table).all() or table.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    middle = float(np.nanmean(table))
    if table.ndim == 1:
        table = table[~np.isnan(table)]
    if table.size == 1:
        return Interval(middle, np.nan, np.nan)
    means = _resampled_means(np.atleast_2d(table), seed)
    low, high = np.nanquantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(middle, float(low), float(high))


def paired_difference(
    first: Sequence[float] | NDArray[np.float64],
    second: Sequence[float] | NDArray[np.float64],
    *,
    seed: int = 0,
) -> Interval:
    """first - second, clip by clip; shapes as in `mean_interval`.

    Raises:
        TensorError: arms of different shapes, which cannot be paired.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:
        raise TensorError(
            f"paired values: got shapes {one.shape} and {other.shape}, expected the same. Run both arms on "
            "the same clips."
        )
    return mean_interval(one - other, seed=seed)


def clips_needed(deviation: float, difference: float, *, power: float = 0.8, paired: bool = True) -> int:
    """Clips per arm with which a true difference is found.

    n = (z_{(1+c)/2} + z_power)² · s² / d², twice that for arms that share no clips; c = 0.95.

    Args:
        deviation: s, standard deviation between clips: of the differences where paired, of one arm if not.
        difference: d, the smallest difference that matters, in the same unit.
        power: chance to find it.

    Raises:
        ConfigError: a difference that is not above zero, or a power outside (0, 1).
    """
    if not difference > 0 or not 0 < power < 1 or deviation < 0:
        raise ConfigError(
            f"clips needed: got deviation {deviation}, difference {difference}, power {power}; expected a "
            "deviation >= 0, a difference > 0 and a power between 0 and 1."
        )
    normal = NormalDist()
    z = normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(power)
    clips = (z * deviation / difference) ** 2 * (1 if paired else 2)
    return max(2, int(np.ceil(clips)))


def _resampled_means(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """[RESAMPLES] means of tables whose rows and columns are drawn with replacement; one row stays as it is.

    A draw is how often each row and column counts: the mean of the drawn table is bilinear in the counts.
    """
    rows, columns = _drawn_counts(seed, *table.shape, RESAMPLES)
    known = ~np.isnan(table)
    sums = ((rows @ np.where(known, table, 0.0)) * columns).sum(axis=1)
    counts = table.size if known.all() else ((rows @ known.astype(float)) * columns).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts)


@lru_cache(maxsize=4)
def _drawn_counts(
    seed: int, rows: int, columns: int, draws: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each of the rows and columns is drawn: [draws, rows], [draws, columns]. The same for every
    table of that shape, and slower to draw than to use."""
    random = np.random.default_rng(seed)
    of_columns = random.multinomial(columns, np.full(columns, 1 / columns), size=draws)
    of_rows = random.multinomial(rows, np.full(rows, 1 / rows), size=draws)
    return of_rows.astype(np.float64), of_columns.astype(np.float64)
