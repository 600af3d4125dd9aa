# SPDX-License-Identifier: Apache-2.0
"""FoPP timesteps for 65,536 clips against the DP-table method in NumPy, in two forms: as AR-Diffusion does it
(tables, and one np.random.choice per frame and clip; timed on some clips and scaled, it would take minutes),
and with all clips side by side. Convention: benchmarks/README.md.

The tables count the non-decreasing sequences before and after a pivot. From 308 frames on they exceed
float64, so logarithms take their place, and the weights of a draw are made from its part of a column.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.sample_timesteps import sample_timesteps

CLIPS, TIMESTEPS = 65_536, 1000
MOST_FRAMES = 307  # whose counts float64 holds


def log_tables(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the counts before and after, [frames, timesteps]: column f of the first is the cumulative
    sum of column f - 1; the second mirrors it."""
    before = np.zeros((frames, TIMESTEPS))
    for f in range(1, frames):
        before[f] = np.logaddexp.accumulate(before[f - 1])
    return before, before[::-1, ::-1]


def clip_by_clip(clips: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    frames = len(before)
    rng = np.random.RandomState(0)

    def draw(column: np.ndarray) -> int:
        weights = column if frames <= MOST_FRAMES else np.exp(column - column.max())
        return rng.choice(len(weights), p=weights / weights.sum())

    out = np.empty((clips, frames), dtype=np.int64)
    for row in out:
        pivot = rng.randint(frames)
        row[pivot] = rng.randint(TIMESTEPS)
        for f in range(pivot - 1, -1, -1):
            row[f] = draw(before[f, : row[f + 1] + 1])
        for f in range(pivot + 1, frames):
            row[f] = row[f - 1] + draw(after[f, row[f - 1] :])
    return out


def side_by_side(clips: int, frames: int, log_before: np.ndarray) -> np.ndarray:
    """Inverts the cumulative sums of all clips at once, in logarithms: P(t_f <= k) is a ratio of two of them.
    The frames after the pivot are those before it, seen from the other end."""
    rng = np.random.RandomState(0)
    pivot, level = rng.randint(frames, size=clips), rng.randint(TIMESTEPS, size=clips)
    out = np.empty((frames, clips), dtype=np.int64)
    cumulative = np.logaddexp.accumulate(log_before, axis=1)
    now = level.copy()
    for f in range(frames - 1, -1, -1):
        drawn = np.searchsorted(cumulative[f], cumulative[f][now] + np.log(rng.random_sample(clips)))
        now = np.where(f < pivot, drawn, now)
        out[f] = now
    now = TIMESTEPS - 1 - level
    for f in range(frames):
        column = cumulative[frames - 1 - f]
        drawn = np.searchsorted(column, column[now] + np.log(rng.random_sample(clips)))
        now = np.where(f > pivot, drawn, now)
        out[f] = np.where(f > pivot, TIMESTEPS - 1 - now, out[f])
    return out.T.copy()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("frames", [16, 1024])
@pytest.mark.parametrize("form", ["clip by clip", "side by side"])
def test_fopp(benchmark: BenchmarkFixture, frames: int, form: str, threads: int) -> None:
    log_before, log_after = log_tables(frames)
    if form == "clip by clip":
        clips = max(16, 4096 // frames)
        tables = (log_before, log_after)
        before, after = map(np.exp, tables) if frames <= MOST_FRAMES else tables

        def opponent() -> np.ndarray:
            return clip_by_clip(clips, before, after)
    else:
        clips = max(4096, CLIPS // frames)

        def opponent() -> np.ndarray:
            return side_by_side(clips, frames, log_before)

    drawn = opponent()
    assert (np.diff(drawn, axis=1) >= 0).all() and drawn.min() >= 0 and drawn.max() < TIMESTEPS
    row = Row(
        op="sample_timesteps, fopp",
        shape=f"{CLIPS} x {frames}",
        threads=threads,
        opponent=f"DP tables in NumPy, {form}",
        bar=50.0 if form == "clip by clip" else None,
        opponent_scale=CLIPS / clips,
    )
    versus(benchmark, row, lambda: sample_timesteps(CLIPS, frames, TIMESTEPS, "fopp", 0), opponent)
