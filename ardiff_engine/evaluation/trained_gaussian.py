# SPDX-License-Identifier: Apache-2.0
"""Which rule of timesteps a network should be trained with, where the best denoiser is known.

    python -m ardiff_engine.evaluation.trained_gaussian --rules fopp iid shared --seeds 0 1 2 3 4

The videos are those of `gaussian_bed`. Small causal networks are trained on them, alike but for the rule and
the seed. A network is judged on the states that the plan of a lag meets: a true video at the noise levels of
one of the plan's ticks, its estimate of the frames that move compared with the exact conditional mean. What
is left is the network's own error, in units of a pixel's variance; solver and steps have no part in it. All
networks get the same states, so that rules are compared clip by clip.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ardiff_engine import command_end
from ardiff_engine.data.choice import uniform
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.encoded_clips import LatentSource
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.evaluation.gaussian_bed import PROCESS
from ardiff_engine.evaluation.gaussian_video import ar2_covariance, conditional_mean
from ardiff_engine.evaluation.intervals import Interval, mean_interval, paired_difference
from ardiff_engine.evaluation.report import Table
from ardiff_engine.files import write_atomic
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.plan import LagPlan
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import (
    DiffusionLossConfig,
    EmaConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from ardiff_engine.training.trainer import Trainer
from ardiff_engine.weights import load_ar_diffusion

FRAMES, PIXELS = 16, 8
SOLVER_STEPS = 50
HELD_OUT = 1 << 32
"""Sample ids from here on are never trained on."""
RULES = ("fopp", "iid", "shared", "uniform", "ptss")
RESULTS = "trained_gaussian.json"


class GaussianClips:
    """Videos float32 [B, 16, 1, 8] of independent, alike AR(2) pixels of variance 1; a clip depends on (seed,
    id)."""

    def __init__(self, seed: int, first: int = 0) -> None:
        self._seed, self._first = seed, first
        self._root = torch.linalg.cholesky(ar2_covariance(FRAMES, *PROCESS))

    def latents(self, samples: Sequence[int]) -> tuple[Tensor, None]:
        draws = np.stack(
            [uniform(self._seed, Purpose.DATA, self._first + sample, FRAMES * PIXELS) for sample in samples]
        )
        normal = torch.special.ndtri(torch.from_numpy(draws).clamp(min=1e-12)).unflatten(1, (FRAMES, PIXELS))
        return (self._root @ normal).float()[:, :, None], None

    def held_out(self) -> GaussianClips:
        return GaussianClips(self._seed, HELD_OUT)


class GaussianTrainer(Trainer):
    """Of networks on these videos."""

    def _source(self) -> LatentSource:
        return GaussianClips(self.config.run.seed)


def gaussian_config(folder: Path, seed: int, steps: int, loss: DiffusionLossConfig) -> TrainConfig:
    """Of a small causal network."""
    run = RunConfig(
        str(folder),
        steps,
        batch=32,
        seed=seed,
        threads=1,
        log_every=100,
        validate_every=0,
        checkpoint_every=1000,
    )
    model = ARDiffusionConfig(
        num_frames=FRAMES,
        tokens_per_frame=1,
        channels=PIXELS,
        width=64,
        depth=3,
        heads=4,
        context_tokens=1,
        context_dim=8,
    )
    data = DataConfig(source="latents", path="gaussian", num_frames=FRAMES)
    optimizer = OptimizerConfig(lr=2e-3, warmup=100)
    return TrainConfig(run, model, data, optimizer, loss, ema=EmaConfig(decay=0.995))


def train_gaussian(config: TrainConfig) -> ARDiffusionTransformer:
    """The network with averaged weights; trained unless its folder is finished."""
    folder = Path(config.run.output)
    checkpoints = folder / "checkpoints"
    GaussianTrainer(config).train(resume=checkpoints.is_dir() and any(checkpoints.iterdir()))
    return load_ar_diffusion(folder / "transformer").eval()


@dataclass(frozen=True, slots=True)
class States:
    """What the plan of a lag meets: noisy [N, F, 1, C], t int64 [N, F], moving bool [N, F], and the exact
    causal estimates of the clean frames, like noisy: from all frames up to each one, and from each one
    alone."""

    noisy: Tensor
    t: Tensor
    moving: Tensor
    exact: Tensor
    alone: Tensor

    def errors(self, estimate: Tensor) -> NDArray[np.float64]:
        """Mean squared distance from the exact estimate over frames that move and pixels: [N]."""
        square = (estimate.double() - self.exact).pow(2).mean(dim=(2, 3)) * self.moving
        return (square.sum(dim=1) / self.moving.sum(dim=1)).numpy()


def states(lag: int, clips: int, seed: int) -> States:
    """Held-out videos at the levels of ticks drawn at random from the plan of 16 frames and 50 steps;
    finished frames stand at timestep 0, as in training."""
    schedule = NoiseSchedule.sqrt_linear()
    plan = LagPlan(FRAMES, SOLVER_STEPS, lag)
    every, updates = plan.timesteps(DDIM(schedule, SOLVER_STEPS)), plan.updates()
    random = np.random.default_rng((seed, lag))
    ticks = random.integers(0, len(every), clips)
    t = torch.from_numpy(np.maximum(every[ticks], 0)).long()
    videos, _ = GaussianClips(seed).held_out().latents(range(clips))
    signal, sigma = schedule.signal(t), schedule.sigma(t)
    noise = torch.from_numpy(random.standard_normal(videos.shape))
    noisy = signal[:, :, None, None] * videos.double() + sigma[:, :, None, None] * noise
    covariance = ar2_covariance(FRAMES, *PROCESS)
    exact = torch.stack(
        [_causal_means(covariance, signal[n], sigma[n]) @ noisy[n, :, 0] for n in range(clips)]
    )[:, :, None]
    alone = (signal / (signal**2 + sigma**2))[:, :, None, None] * noisy
    return States(noisy.float(), t, torch.from_numpy(updates[ticks]), exact, alone)


def _causal_means(covariance: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    """[F, F]: row f is the estimate of frame f from frames 0 .. f."""
    rows = torch.zeros_like(covariance)
    for f in range(len(rows)):
        seen = slice(0, f + 1)
        rows[f, seen] = conditional_mean(covariance[seen, seen], signal[seen], sigma[seen])[f]
    return rows


@dataclass(frozen=True, slots=True)
class Comparison:
    """errors: by rule and lag, [seeds, clips]; alone: by lag, [clips], of the best denoiser that sees its own
    frame only. A network above that has learned nothing about motion."""

    steps: int
    errors: Mapping[str, Mapping[int, NDArray[np.float64]]]
    alone: Mapping[int, NDArray[np.float64]]

    def tables(self) -> Iterator[Table]:
        """Errors, and differences of each pair of rules, both with 95 % intervals over seeds and clips."""
        lags = sorted(self.alone)
        heads = [f"lag {lag}" for lag in lags]
        rows = [[rule, *(_shown(mean_interval(at[lag])) for lag in lags)] for rule, at in self.errors.items()]
        rows.append(["each frame alone", *(_shown(mean_interval(self.alone[lag])) for lag in lags)])
        yield Table(["trained with", *heads], rows)
        pairs = [
            [f"{one} less {other}", *(_shown(self.difference(one, other, lag), "+") for lag in lags)]
            for one, other in combinations(self.errors, 2)
        ]
        yield Table(["difference", *heads], pairs)

    def difference(self, one: str, other: str, lag: int) -> Interval:
        return paired_difference(self.errors[one][lag], self.errors[other][lag])

    def save(self, path: Path) -> None:
        values = {
            "steps": self.steps,
            "errors": {
                rule: {str(lag): np.round(values, 6).tolist() for lag, values in at.items()}
                for rule, at in self.errors.items()
            },
            "alone": {str(lag): np.round(values, 6).tolist() for lag, values in self.alone.items()},
        }
        write_atomic(path, (json.dumps(values) + "\n").encode())


def compare(
    rules: Sequence[str], seeds: Sequence[int], lags: Sequence[int], steps: int, clips: int, folder: Path
) -> Comparison:
    """Trains what is not there yet below `folder`, going on from checkpoints, and measures all of it."""
    at_lag = {lag: states(lag, clips, seed=0) for lag in lags}
    errors: dict[str, dict[int, NDArray[np.float64]]] = {}
    for rule in rules:
        models = [trained(rule, seed, steps, folder / f"{rule}-{seed}") for seed in seeds]
        errors[rule] = {
            lag: np.stack([_errors(model, held) for model in models]) for lag, held in at_lag.items()
        }
    return Comparison(steps, errors, {lag: held.errors(held.alone) for lag, held in at_lag.items()})


def trained(rule: str, seed: int, steps: int, folder: Path) -> ARDiffusionTransformer:
    """The network of that rule and seed."""
    loss = DiffusionLossConfig(timesteps=rule, null_probability=0.0)  # type: ignore[arg-type]
    return train_gaussian(gaussian_config(folder, seed, steps, loss))


@torch.no_grad()
def _errors(model: ARDiffusionTransformer, held: States) -> NDArray[np.float64]:
    context = model.context(None, len(held.t))
    return held.errors(model.forward_clip(held.noisy, held.t, context))


def _shown(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.trained_gaussian", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["fopp", "iid", "shared"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 5, 10, 50])
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=512, help="states per lag (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/trained_gaussian"))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    found = compare(
        tqdm(options.rules, desc="rules"),
        options.seeds,
        options.lags,
        options.steps,
        options.clips,
        options.output,
    )
    found.save(options.output / RESULTS)
    print("\n\n".join(table.markdown() for table in found.tables()))
    return 0


if __name__ == "__main__":
    sys.exit(command_end.console(main))
