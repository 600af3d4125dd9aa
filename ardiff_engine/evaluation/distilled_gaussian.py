# SPDX-License-Identifier: Apache-2.0
"""Whether a distilled student beats its teacher's own sampler with as few steps, where the truth is known.

    python -m ardiff_engine.evaluation.distilled_gaussian

The videos are those of `gaussian_bed`. A causal teacher is trained frame by frame from clean history, and a
student from it by consistency distillation. Both continue the same held-out clips from the same noise by the
engine: 8 frames are given, 8 are made, each from finished ones (lag = steps), by DDIM. The score of a clip is
the energy score of K samples x_k against the true continuation y, over the square root of its numbers:

    ES = mean |x_k − y| − ½ mean_{j≠k} |x_j − x_k|

It is proper: no law of samples has a lower one in the mean than the true law. Less is better.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ardiff_engine import command_end
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Request
from ardiff_engine.evaluation.continuations import run_together
from ardiff_engine.evaluation.gaussian_bed import PROCESS
from ardiff_engine.evaluation.gaussian_video import ar2_covariance
from ardiff_engine.evaluation.intervals import Interval, mean_interval, paired_difference
from ardiff_engine.evaluation.report import Table
from ardiff_engine.evaluation.trained_gaussian import (
    FRAMES,
    PIXELS,
    GaussianClips,
    gaussian_config,
    train_gaussian,
)
from ardiff_engine.files import write_atomic
from ardiff_engine.memory import Full
from ardiff_engine.models import ARDiffusionTransformer
from ardiff_engine.training.config import DiffusionLossConfig, OptimizerConfig
from ardiff_engine.training.distillation import DistillationConfig

GIVEN, SAMPLES, MANY_STEPS, TEACHER_GRID = 8, 8, 50, 24
RESULTS = "distilled_gaussian.json"


def teacher_and_student(
    folder: Path, seed: int, steps: int, student_steps: int
) -> tuple[ARDiffusionTransformer, ARDiffusionTransformer]:
    """Trained unless their folders are finished; they go on from checkpoints."""
    loss = DiffusionLossConfig(
        timesteps="iid", null_probability=0.0, teacher_forcing=1.0, history_levels=(0, 0)
    )
    teacher = gaussian_config(folder / f"teacher-{seed}", seed, steps, loss)
    models = train_gaussian(teacher)
    student = replace(
        gaussian_config(
            folder / f"student-{seed}", seed, student_steps, replace(loss, objective="consistency")
        ),
        optimizer=OptimizerConfig(lr=5e-4, warmup=50),
        distillation=DistillationConfig(str(teacher.run.output), teacher_steps=TEACHER_GRID),
    )
    return models, train_gaussian(student)


@torch.no_grad()
def continued(model: ARDiffusionTransformer, videos: Tensor, steps: int, seed: int) -> Tensor:
    """float64 [N, SAMPLES, 8, 8]: continuations of videos [N, 16, 1, 8]; noise depends on (seed, clip,
    sample) alone."""
    requests = [
        Request(
            num_frames=FRAMES,
            lag=steps,
            seed=seed,
            noise_stream=clip * SAMPLES + sample,
            prefix=video[:GIVEN],
        )
        for clip, video in enumerate(videos)
        for sample in range(SAMPLES)
    ]
    made = torch.stack(run_together(model, DDIM(NoiseSchedule.sqrt_linear(), steps), Full(), requests))
    return made[:, GIVEN:, 0].double().unflatten(0, (-1, SAMPLES))


def exact(videos: Tensor, seed: int) -> Tensor:
    """The same from the true law of the frames that are not given."""
    covariance = ar2_covariance(FRAMES, *PROCESS)
    given, new = slice(0, GIVEN), slice(GIVEN, FRAMES)
    gain = covariance[new, given] @ torch.linalg.inv(covariance[given, given])
    root = torch.linalg.cholesky(covariance[new, new] - gain @ covariance[given, new])
    random = np.random.default_rng(seed)
    noise = torch.from_numpy(random.standard_normal((len(videos), SAMPLES, FRAMES - GIVEN, PIXELS)))
    return (gain @ videos[:, given, 0].double())[:, None] + root @ noise


def energy_score(samples: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """[N]; samples [N, K, ...], truth [N, ...]."""
    flat, count = samples.flatten(2), samples.shape[1]
    far = (flat - truth.flatten(1)[:, None]).norm(dim=2).mean(1)
    apart = torch.cdist(flat, flat).sum(dim=(1, 2)) / (count * (count - 1))
    return ((far - apart / 2) / flat.shape[2] ** 0.5).numpy()


@dataclass(frozen=True, slots=True)
class Comparison:
    """scores: by arm, "teacher" or "student", and steps, [seeds, clips]. floor: of the true law, [clips].
    held: of the last given frame held, [clips]."""

    scores: Mapping[str, Mapping[int, NDArray[np.float64]]]
    floor: NDArray[np.float64]
    held: NDArray[np.float64]

    def difference(self, steps: int) -> Interval:
        """Student less teacher, paired by seed and clip."""
        return paired_difference(self.scores["student"][steps], self.scores["teacher"][steps])

    def table(self) -> Table:
        rows = [
            [
                str(steps),
                _shown(mean_interval(self.scores["teacher"][steps])),
                _shown(mean_interval(self.scores["student"][steps])),
                _shown(self.difference(steps), "+"),
            ]
            for steps in self.scores["student"]
        ]
        more = self.scores["teacher"].keys() - self.scores["student"].keys()
        rows += [[str(steps), _shown(mean_interval(self.scores["teacher"][steps])), "", ""] for steps in more]
        rows += [["true law", _shown(mean_interval(self.floor)), "", ""]]
        rows += [["last frame held", _shown(mean_interval(self.held)), "", ""]]
        return Table(["steps", "teacher", "student", "student less teacher"], rows)

    def save(self, path: Path) -> None:
        values = {
            "scores": {
                arm: {str(steps): np.round(own, 6).tolist() for steps, own in by_steps.items()}
                for arm, by_steps in self.scores.items()
            },
            "floor": np.round(self.floor, 6).tolist(),
            "held": np.round(self.held, 6).tolist(),
        }
        write_atomic(path, (json.dumps(values) + "\n").encode())


def compare(
    folder: Path, seeds: Sequence[int], steps: int, student_steps: int, few: Sequence[int], clips: int
) -> Comparison:
    """All seeds continue the same clips."""
    videos, _ = GaussianClips(0).held_out().latents(range(clips))
    truth = videos[:, GIVEN:, 0].double()
    found: dict[str, dict[int, list[NDArray[np.float64]]]] = {"teacher": {}, "student": {}}
    for seed in tqdm(seeds, desc="seeds"):
        teacher, student = teacher_and_student(folder, seed, steps, student_steps)
        for arm, count in _arms(few):
            made = continued(teacher if arm == "teacher" else student, videos, count, seed)
            found[arm].setdefault(count, []).append(energy_score(made, truth))
    held = videos[:, GIVEN - 1 : GIVEN, 0].double().expand_as(truth)[:, None].expand(-1, 2, -1, -1)
    return Comparison(
        {arm: {count: np.stack(own) for count, own in by_steps.items()} for arm, by_steps in found.items()},
        energy_score(exact(videos, 0), truth),
        energy_score(held, truth),
    )


def _arms(few: Sequence[int]) -> Iterator[tuple[str, int]]:
    for count in few:
        yield "teacher", count
        yield "student", count
    if MANY_STEPS not in few:
        yield "teacher", MANY_STEPS


def _shown(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.distilled_gaussian", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--few", type=int, nargs="+", default=[1, 2, 4], help="steps (default: 1 2 4)")
    parser.add_argument("--steps", type=int, default=800, help="of the teacher (default: %(default)s)")
    parser.add_argument("--student-steps", type=int, default=400, help="(default: %(default)s)")
    parser.add_argument("--clips", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/distilled_gaussian"))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    found = compare(
        options.output, options.seeds, options.steps, options.student_steps, options.few, options.clips
    )
    found.save(options.output / RESULTS)
    print(found.table().markdown())
    return 0


if __name__ == "__main__":
    sys.exit(command_end.console(main))
