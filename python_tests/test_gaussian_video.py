# SPDX-License-Identifier: Apache-2.0
"""The engine runs a network that it knows by the protocol alone, and what comes out is known exactly.

Each pixel of a frame is a video of its own. Given the unit vectors as starting noise, one pixel each, the
pixels of the result are the columns of the linear map from noise to video.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.evaluation.gaussian_bed import (
    PROCESS,
    Setting,
    bures_wasserstein,
    distance,
    main,
    video_map,
)
from ardiff_engine.evaluation.gaussian_video import GaussianVideo, ar2_covariance, conditional_mean
from ardiff_engine.memory import Full, RecomputedWindow

SCHEDULE = NoiseSchedule.sqrt_linear()
SMOOTH, ROUGH = (0.97, 16.0), (0.85, 7.0)
GOLDEN = Path(__file__).parent / "golden" / "gaussian_video.npz"


def engine_of(processes, steps, *, tokens, causal):
    model = GaussianVideo(processes, SCHEDULE, tokens=tokens, causal=causal)
    memory = Full() if causal else RecomputedWindow(16)
    return ade.Engine(model, solver=DDIM(SCHEDULE, steps), memory=memory, max_pages=100)


def map_of(engine, lag, frames, channel=0):
    """[frames, frames]: one token per unit vector."""
    noise = torch.zeros(frames, frames, engine.model.spec.channels)
    noise[range(frames), range(frames)] = 1
    stream = engine.submit(ade.Request(num_frames=frames, lag=lag, latents=noise))
    return stream.result()[:, :, channel].double()


def predicted(covariance, steps, lag, causal, *, eta=0.0, window=None):
    """The same by linear algebra: the solver's formula on the maps of all frames at once. With eta there are
    columns for the noise of all updates. window: frames that a pass sees, to the newest that has begun."""
    frames, solver = len(covariance), DDIM(SCHEDULE, steps)
    alphas = torch.cat(
        [SCHEDULE.alphas_cumprod[solver.timesteps[:steps].long()], SCHEDULE.alphas_cumprod[:1]]
    )
    updates = frames * steps if eta else 0
    video = torch.eye(frames, frames + updates, dtype=torch.float64)
    levels = [0] * frames
    for tick in range(steps + lag * (frames - 1)):
        started = [f for f in range(frames) if f * lag <= tick]
        moving = [f for f in started if levels[f] < steps]
        times = torch.tensor(
            [solver.timesteps[levels[f]] if f in started else solver.waiting_timestep for f in range(frames)]
        ).long()
        signal, sigma = SCHEDULE.signal(times), SCHEDULE.sigma(times)
        after = video.clone()
        first = 0 if window is None else max(0, started[-1] + 1 - window)
        for f in moving:
            n = f + 1 if causal else frames if window is None else min(frames, first + window)
            seen = slice(first, n)
            mean = (
                conditional_mean(covariance[seen, seen], signal[seen], sigma[seen])[f - first] @ video[seen]
            )
            now, then = alphas[levels[f]], alphas[levels[f] + 1]
            noise = (video[f] - now.sqrt() * mean) / (1 - now).sqrt()
            fresh = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
            after[f] = then.sqrt() * mean + (1 - then - fresh**2).sqrt() * noise
            if eta:
                after[f, frames + f * steps + levels[f]] += fresh
        video = after
        for f in moving:
            levels[f] += 1
    return video


@pytest.mark.parametrize("causal", [True, False])
def test_every_lag_gives_the_predicted_covariance(causal):
    frames, steps = 9, 6
    engine = engine_of((SMOOTH, ROUGH), steps, tokens=frames, causal=causal)
    for channel, process in enumerate((SMOOTH, ROUGH)):
        for lag in range(steps + 1):
            want = predicted(ar2_covariance(frames, *process), steps, lag, causal)
            got = map_of(engine, lag, frames, channel)
            assert torch.allclose(got, want, rtol=0, atol=1e-5)
            assert torch.allclose(got @ got.T, want @ want.T, rtol=0, atol=1e-5)


def golden_settings() -> Iterator[object]:
    """Every map of the file; the ones of many passes are slow."""
    for name in sorted(np.load(GOLDEN)):
        if found := re.fullmatch(r"M(?P<frames>\d*)(_window(?P<window>\d+))?_(?P<sight>[cb])_S(?P<steps>\d+)"
            r"_lag(?P<lag>\d+)_eta0", name):  # fmt: skip
            frames, window = int(found["frames"] or 16), found["window"]
            setting = Setting(
                int(found["steps"]),
                int(found["lag"]),
                causal=found["sight"] == "c",
                frames=frames,
                window=None if window is None else int(window),
            )
            passes = setting.steps + setting.lag * (frames - 1)
            yield pytest.param(name, setting, marks=[pytest.mark.slow] if passes * frames > 2000 else [])


@pytest.mark.parametrize("name, setting", list(golden_settings()))
def test_maps_computed_elsewhere(name: str, setting: Setting) -> None:
    """Computed once in float64 by another program; see golden/README.md."""
    golden = np.load(GOLDEN)
    got = video_map(setting)
    assert np.abs(got.numpy() - golden[name]).max() < 5e-6
    made = "P" + name[1:]
    if made in golden:
        assert np.abs((got @ got.T).numpy() - golden[made]).max() < 5e-6


def test_the_true_covariance() -> None:
    assert np.allclose(ar2_covariance(16, *PROCESS), np.load(GOLDEN)["C"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "steps, lag, causal, published",
    [
        (50, 0, True, 0.15213), (50, 5, True, 0.02934), (50, 50, True, 0.00525), (10, 1, True, 0.0531),
        (50, 0, False, 0.00093), (50, 5, False, 0.00099), (50, 50, False, 0.00296), (10, 5, False, 0.0457),
    ],
)  # fmt: skip
def test_distances_computed_elsewhere(steps: int, lag: int, causal: bool, published: float) -> None:
    setting = Setting(steps, lag, causal)
    golden = np.load(GOLDEN)[f"M_{'c' if causal else 'b'}_S{steps}_lag{lag}_eta0"]
    assert distance(setting, torch.from_numpy(golden)) == pytest.approx(published, rel=1e-2, abs=5e-6)


def test_a_small_variance() -> None:
    assert distance(Setting(20, 20, causal=True, frames=4, variance=0.25)) > 0
    one, quarter = (
        video_map(Setting(6, 1, causal=False, frames=4, variance=variance)) for variance in (1.0, 0.25)
    )
    want = predicted(0.25 * ar2_covariance(4, *PROCESS), 6, 1, causal=False)
    assert torch.allclose(quarter, want, rtol=0, atol=5e-6) and not torch.allclose(one, quarter, atol=1e-2)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "steps, lag, frames, eta, window, variance",
    [
        (7, 3, 8, 1.0, None, 1.0),
        (10, 0, 6, 1.0, None, 0.25),
        (5, 2, 9, 0.5, 4, 1.0),
        (33, 13, 5, 0.0, None, 0.25),
        (6, 4, 12, 0.0, 5, 1.0),
        (8, 8, 9, 1.0, 3, 0.25),
    ],
)
def test_other_steps_lags_noise_windows_and_variances(
    steps: int, lag: int, frames: int, eta: float, window: int | None, variance: float, causal: bool
) -> None:
    setting = Setting(steps, lag, causal, frames, window, variance, eta=eta)
    covariance = variance * ar2_covariance(frames, *PROCESS)
    want = predicted(covariance, steps, lag, causal, eta=eta, window=window)
    got = video_map(setting)
    assert got.shape == want.shape and (got - want).abs().max() < 5e-6
    far = bures_wasserstein(covariance, want @ want.T) / (frames * variance)
    assert distance(setting, got) == pytest.approx(far, abs=5e-6)


@pytest.mark.parametrize("solver", ["euler", "dpm"])
def test_more_steps_along_a_flow_come_nearer(solver: str) -> None:
    few, many = (distance(Setting(n, 0, causal=False, frames=6, solver=solver)) for n in (5, 20))
    assert 0 < many < few


def test_bures_wasserstein_is_that_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    first, second = first @ first.T, second @ second.T
    root = linalg.sqrtm(first.numpy())
    want = np.trace(first) + np.trace(second) - 2 * np.trace(linalg.sqrtm(root @ second.numpy() @ root)).real
    assert bures_wasserstein(first, second) == pytest.approx(float(want), rel=1e-9)
    assert abs(bures_wasserstein(first, first)) < 1e-9
    assert bures_wasserstein(4 * torch.eye(3).double(), torch.eye(3).double()) == pytest.approx(3.0)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "4", "--lags", "0", "4", "5", "--frames", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].endswith("| lag 0 | lag 4 |")
    want = distance(Setting(4, 4, causal=True, frames=3))
    assert float(lines[2].split("|")[-2]) == pytest.approx(want, abs=5e-6)
    assert main(["--steps", "4", "--lags", "1", "--frames", "3", "--eta", "1"]) == 0
    assert "| ddim, eta 1 | 4 |" in capsys.readouterr().out
    assert main(["--steps", "0"]) != 0
    assert main(["--steps", "4", "--eta", "1.5"]) == main(["--solver", "dpm", "--eta", "1"]) == 2


def test_the_document_holds_what_the_maps_say() -> None:
    """The table of docs/evidence.md, where the file of maps has the setting."""
    golden, checked = np.load(GOLDEN), 0
    lags: list[int] = []
    for line in (Path(__file__).parents[1] / "docs" / "evidence.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if cells[0] == "solver":
            lags = [int(cell.removeprefix("lag ")) for cell in cells[6:]]
        elif cells[0] == "ddim" and cells[2:5] == ["16", "all", "1"]:
            for lag, cell in zip(lags, cells[6:], strict=False):
                name = f"M_{cells[5][0]}_S{cells[1]}_lag{lag}_eta0"
                if cell and name in golden:
                    setting = Setting(int(cells[1]), lag, cells[5] == "causal")
                    assert float(cell) == pytest.approx(
                        distance(setting, torch.from_numpy(golden[name])), abs=6e-6
                    )
                    checked += 1
    assert checked >= 15


def test_alone_and_together_are_the_same_bits():
    engine = engine_of((SMOOTH, ROUGH), 6, tokens=4, causal=True)
    alone = [engine.submit(ade.Request(num_frames=8, lag=lag, seed=lag)).result() for lag in (0, 2, 6)]
    streams = [engine.submit(ade.Request(num_frames=8, lag=lag, seed=lag)) for lag in (0, 2, 6)]
    assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))
