# SPDX-License-Identifier: Apache-2.0
"""Training timesteps against exact laws: enumeration of all sequences, the exact per-frame marginals,
closed-form means. Significance limits are at about 1e-6, with fixed seeds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ConfigError
from ardiff_engine.ops.sample_timesteps import RULES, reference_sample_timesteps, sample_timesteps

GOLDEN = Path(__file__).parent / "golden"
CLIPS = 37  # whole vectors of clips, and a rest


def chi_square_limit(freedom: int) -> float:
    """Quantile at five standard deviations (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 5 * math.sqrt(2 / (9 * freedom))) ** 3


def through(frames: int, timesteps: int, f: int, t: int) -> int:
    return math.comb(t + f, f) * math.comb(timesteps - 1 - t + frames - 1 - f, frames - 1 - f)


def law(rule: str, frames: int, timesteps: int) -> dict[tuple[int, ...], float]:
    """Exact probability of every non-decreasing sequence."""
    sequences = list(itertools.combinations_with_replacement(range(timesteps), frames))
    if rule == "uniform":
        return dict.fromkeys(sequences, 1 / len(sequences))
    weight = 1 / (frames * timesteps)
    return {s: weight * sum(1 / through(frames, timesteps, f, t) for f, t in enumerate(s)) for s in sequences}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("frames", "timesteps"), [(16, 1000), (4, 6), (1, 9), (9, 1), (1, 1), (200, 30), (3, 2)]
)
def test_kernel_equals_reference(rule: str, frames: int, timesteps: int) -> None:
    for seed, first in ((0, 0), (2**63 + 5, 2**33 - 9)):
        signed = seed - 2**64 if seed >= 2**63 else seed
        drawn = sample_timesteps(CLIPS, frames, timesteps, rule, seed, first_sample=first)
        assert torch.equal(drawn, reference_sample_timesteps(CLIPS, frames, timesteps, rule, signed, first))


@pytest.mark.parametrize("rule", ["fopp", "uniform"])
def test_whole_sequences_follow_the_exact_law(rule: str) -> None:
    frames, timesteps, draws = 4, 6, 300_000
    exact = law(rule, frames, timesteps)
    assert len(exact) == math.comb(timesteps + frames - 1, frames) == 126
    assert math.isclose(sum(exact.values()), 1)
    code = (sample_timesteps(draws, frames, timesteps, rule, seed=1) * 6 ** torch.arange(frames)).sum(1)
    counts = torch.bincount(code, minlength=6**frames)
    observed = torch.tensor(
        [int(counts[sum(t * 6**f for f, t in enumerate(s))]) for s in exact], dtype=torch.float64
    )
    assert observed.sum() == draws
    expected = draws * torch.tensor(list(exact.values()), dtype=torch.float64)
    assert ((observed - expected) ** 2 / expected).sum().item() < chi_square_limit(125)


@pytest.mark.parametrize(("rule", "golden"), [("fopp", "midt"), ("uniform", "incremental")])
def test_marginals_equal_the_exact_ones(rule: str, golden: str) -> None:
    exact = torch.from_numpy(np.load(GOLDEN / "fopp_exact_marginals_F4_T10.npz")[golden])
    draws = 200_000
    drawn = sample_timesteps(draws, 4, 10, rule, seed=2)
    for f in range(4):
        observed = torch.bincount(drawn[:, f], minlength=10).double()
        expected = draws * exact[f]
        assert ((observed - expected) ** 2 / expected).sum().item() < chi_square_limit(9)


@pytest.mark.parametrize(
    ("rule", "golden"), [("fopp", "midt_sequences"), ("uniform", "incremental_sequences")]
)
def test_means_agree_with_the_official_sampler(rule: str, golden: str) -> None:
    official = torch.from_numpy(np.load(GOLDEN / "fopp_F16_T1000.npz")[golden]).double()
    drawn = sample_timesteps(20_000, 16, 1000, rule, seed=3).double()
    error = (official.var(0) / official.shape[0] + drawn.var(0) / drawn.shape[0]).sqrt()
    assert ((official.mean(0) - drawn.mean(0)).abs() < 5 * error).all()


def test_fopp_means_are_the_exact_ones() -> None:
    tables = np.load(GOLDEN / "fopp_F16_T1000.npz")
    counts = tables["mat_e"] * tables["mat_s"]  # sequences through (t, f)
    frames, timesteps = 16, 1000
    before = np.array(
        [[through(frames, timesteps, f, t) for f in range(frames)] for t in range(timesteps)], dtype=float
    )
    np.testing.assert_allclose(counts, before, rtol=1e-9)
    drawn = sample_timesteps(40_000, frames, timesteps, "fopp", seed=4).double()
    exact = torch.tensor([105.5, 181.8, 244.6, 299.1, 348.3, 393.8, 437.0, 478.8], dtype=torch.float64)
    exact = torch.cat([exact, 999 - exact.flip(0)])
    assert ((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / 200 + 0.05).all()


def test_long_clips() -> None:
    drawn = sample_timesteps(64, 4096, 1000, "fopp", seed=5)
    assert drawn.min() >= 0 and drawn.max() <= 999 and (drawn.diff(dim=1) >= 0).all()
    uniform = sample_timesteps(512, 4096, 1000, "uniform", seed=5).double()
    exact = 999 * (torch.arange(4096, dtype=torch.float64) + 1) / 4097
    assert ((uniform.mean(0) - exact).abs() < 6 * uniform.std(0) / 512**0.5 + 0.05).all()


@pytest.mark.parametrize("rule", ["iid", "shared"])
def test_free_rules_are_uniform(rule: str) -> None:
    drawn = sample_timesteps(100_000, 3, 10, rule, seed=6)
    for f in range(3):
        observed = torch.bincount(drawn[:, f], minlength=10).double()
        assert ((observed - 1e4) ** 2 / 1e4).sum().item() < chi_square_limit(9)
    same = (drawn[:, 0] == drawn[:, 1]).double().mean().item()
    assert same == 1.0 if rule == "shared" else abs(same - 0.1) < 0.005


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_depends_on_its_number_only(rule: str) -> None:
    together = sample_timesteps(40, 16, 1000, rule, seed=7)
    parts = [sample_timesteps(8, 16, 1000, rule, seed=7, first_sample=8 * i) for i in range(5)]
    assert torch.equal(together, torch.cat(parts))
    assert not torch.equal(together, sample_timesteps(40, 16, 1000, rule, seed=8))


def test_edges() -> None:
    for rule in RULES:
        assert (sample_timesteps(50, 7, 1, rule) == 0).all()
        assert sample_timesteps(0, 7, 10, rule).shape == (0, 7)
        single = sample_timesteps(20_000, 1, 4, rule, seed=9)
        assert ((torch.bincount(single[:, 0], minlength=4) - 5000).abs() < 320).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "fop"},
        {"num_frames": 0},
        {"num_timesteps": 0},
        {"batch": -1},
        {"seed": 2**64},
        {"first_sample": -1},
        {"device": "warp9"},
        {"device": "cuda:99"},
    ],
)
def test_wrong_settings(changes: dict[str, object]) -> None:
    settings: dict[str, object] = {"batch": 2, "num_frames": 3, "num_timesteps": 10, **changes}
    with pytest.raises(ConfigError):
        sample_timesteps(**settings)  # type: ignore[arg-type]


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.ardiff.sample_timesteps.default, (3, 4, 10, "fopp", 1, 0))


def test_the_small_official_tables_are_the_closed_forms() -> None:
    tables = np.load(GOLDEN / "fopp_F4_T10.npz")
    frames, timesteps = 4, 10
    for t, f in itertools.product(range(timesteps), range(frames)):
        after, before = frames - 1 - f, timesteps - 1 - t
        assert tables["mat_s"][t, f] == math.comb(before + after, after)
        assert tables["mat_e"][t, f] == math.comb(t + f, f)


@pytest.mark.parametrize(
    ("rule", "golden"), [("fopp", "midt_sequences"), ("uniform", "incremental_sequences")]
)
def test_frames_are_distributed_as_in_the_official_draws(rule: str, golden: str) -> None:
    """Two samples, chi-square per frame; the same test tells the two official samplers apart."""
    tables = np.load(GOLDEN / "fopp_F4_T10.npz")
    official = tables[golden]
    assert (np.diff(official, axis=1) >= 0).all()
    drawn = sample_timesteps(200_000, 4, 10, rule, seed=10).numpy()
    assert all(two_samples(official[:, f], drawn[:, f]) < chi_square_limit(9) for f in range(4))
    other = tables["incremental_sequences" if rule == "fopp" else "midt_sequences"]
    assert any(two_samples(other[:, f], drawn[:, f]) > chi_square_limit(9) for f in range(4))


def two_samples(first: np.ndarray, second: np.ndarray) -> float:
    """Chi-square statistic of two samples of levels 0..9, with 9 degrees of freedom."""
    counts = np.stack([np.bincount(sample, minlength=10) for sample in (first, second)]).astype(float)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())
