# SPDX-License-Identifier: Apache-2.0
"""Intervals cover the truth as often as they say, and pairing finds what separate arms do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.evaluation.intervals import clips_needed, mean_interval, paired_difference


def test_interval_is_that_of_an_independent_library(dice: np.random.Generator) -> None:
    values = dice.gamma(2.0, size=60)
    ours = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    spread = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * spread)


def test_interval_covers_the_true_mean(dice: np.random.Generator) -> None:
    covered = [not mean_interval(dice.normal(1.0, 2.0, size=40), seed=n).excludes(1.0) for n in range(150)]
    assert 0.87 <= np.mean(covered) <= 0.99


def test_seeds_and_clips_are_both_drawn(dice: np.random.Generator) -> None:
    """Where seeds differ and clips do not, many clips of few seeds make nothing surer."""
    seeds = dice.normal(size=5)
    table = np.repeat(seeds[:, None], 400, axis=1)
    both, clips_alone = mean_interval(table), mean_interval(table.ravel())
    assert both.high - both.low > 5 * (clips_alone.high - clips_alone.low)
    assert both.high - both.low == pytest.approx(3.92 * seeds.std() / 5**0.5, rel=0.15)


def test_pairing_finds_a_small_difference(dice: np.random.Generator) -> None:
    clips = dice.normal(5.0, 2.0, size=40)
    one, other = clips + dice.normal(0.2, 0.2, size=40), clips
    assert paired_difference(one, other).excludes(0.0)
    assert not paired_difference(one, dice.permutation(other)).excludes(0.0)


def test_missing_values_are_left_out() -> None:
    found = mean_interval([1.0, np.nan, 3.0])
    assert found.mean == 2.0 and found.low == 1.0 and found.high == 3.0
    assert np.isnan(mean_interval([np.nan]).mean) and np.isnan(mean_interval([2.0]).low)
    assert mean_interval([[1.0, np.nan], [3.0, 3.0]]).mean == pytest.approx(7 / 3)


@pytest.mark.parametrize("paired", [True, False])
def test_the_number_of_clips_has_the_power_it_promises(dice: np.random.Generator, paired: bool) -> None:
    clips = clips_needed(1.0, 0.5, paired=paired)
    assert clips == (32 if paired else 63)  # textbook: 7.85 · 4, twice that for two arms
    first = dice.normal(0.5, 1.0, size=(4000, clips))
    second = np.zeros_like(first) if paired else dice.normal(0.0, 1.0, size=first.shape)
    deviation = 1.0 if paired else 2**0.5
    z = (first - second).mean(axis=1) / deviation * clips**0.5
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def test_arms_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(TensorError, match="same clips"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(TensorError, match="shape"):
        mean_interval(np.zeros((1, 1, 1)))
    with pytest.raises(ConfigError, match="difference"):
        clips_needed(1.0, 0.0)
