# SPDX-License-Identifier: Apache-2.0
"""How far generated videos are from the truth where the truth is known: the engine with a perfect denoiser.

    python -m ardiff_engine.evaluation.gaussian_bed --steps 50 --lags 0 5 50

The videos are Gaussian, the denoiser is their exact conditional mean, and every solver step is linear. So
the engine as a whole is a matrix M from starting noise to video, and its videos have covariance M Mᵀ. What is
left is the error of solver, steps, plan, mask and memory alone; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ardiff_engine import command_end
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM, DPMSolver, Euler, Solver
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.gaussian_video import GaussianVideo, Schedule, ar2_covariance
from ardiff_engine.memory import Full, MemoryPolicy, RecomputedWindow
from ardiff_engine.memory.page_pool import choose_page_rows
from ardiff_engine.noise import Given

PROCESS = (0.97, 16.0)
"""Radius and period of the poles."""
SOLVERS = ("ddim", "euler", "dpm")
FLOW_SHIFT = 5.0


@dataclass(frozen=True, slots=True)
class Setting:
    """steps, lag: of the plan. causal: whether the denoiser sees earlier frames alone. window: frames that it
    sees at most, each computed again in every pass; None: all, and a causal one sees them through pages.
    variance: of a pixel. eta: of DDIM, whose updates add noise from 0 on."""

    steps: int
    lag: int
    causal: bool
    frames: int = 16
    window: int | None = None
    variance: float = 1.0
    solver: str = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.eta and self.solver != "ddim":
            raise ConfigError(
                f"eta: got {self.eta} with solver {self.solver!r:.80}, expected 0. It is DDIM's."
            )


def video_map(setting: Setting) -> Tensor:
    """M, float64 [F, F]: column f is the video that the engine makes of noise 1 in frame f and 0 elsewhere.
    With eta [F, F + F S]: then comes a column for the noise of each update of each frame.

    All columns are pixels of one video, which the denoiser takes to be alike and independent.
    """
    solver, schedule = _solver(setting)
    frames, steps = setting.frames, setting.steps
    updates = frames * steps if setting.eta else 0
    columns = torch.eye(frames + updates)[:, :, None]
    model = GaussianVideo(
        (PROCESS,), schedule, tokens=len(columns), causal=setting.causal, variance=setting.variance
    )
    engine = Engine(model, solver=solver, memory=_memory(setting), max_pages=_pages(setting, len(columns)))
    noise = Given(columns[:frames], columns[frames:].unflatten(0, (frames, steps)) if updates else None)
    request = Request(num_frames=frames, lag=setting.lag, noise=noise)
    return engine.submit(request).result()[:, :, 0].double()


def distance(setting: Setting, mapped: Tensor | None = None) -> float:
    """Squared Bures-Wasserstein distance between the generated videos and the true ones, per frame and pixel,
    in units of a pixel's variance."""
    mapped = video_map(setting) if mapped is None else mapped
    truth = setting.variance * ar2_covariance(setting.frames, *PROCESS)
    return bures_wasserstein(truth, mapped @ mapped.T) / (setting.frames * setting.variance)


def bures_wasserstein(first: Tensor, second: Tensor) -> float:
    """W2² of N(0, A) and N(0, B), float64: tr A + tr B - 2 tr (A^½ B A^½)^½."""
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float(first.trace() + second.trace() - 2 * cross)


def _solver(setting: Setting) -> tuple[Solver, Schedule]:
    if setting.solver == "ddim":
        diffusion = NoiseSchedule.sqrt_linear()
        return DDIM(diffusion, setting.steps, setting.eta), diffusion
    flow = FlowSchedule(FLOW_SHIFT)
    if setting.solver == "euler":
        return Euler(flow, setting.steps, prediction="x0"), flow
    if setting.solver == "dpm":
        return DPMSolver(flow, setting.steps, prediction="x0"), flow
    raise ConfigError(f"solver: got {setting.solver!r:.80}, expected one of {', '.join(SOLVERS)}.")


def _memory(setting: Setting) -> MemoryPolicy:
    if setting.window is not None:
        return RecomputedWindow(setting.window)
    return Full() if setting.causal else RecomputedWindow(setting.frames)


def _pages(setting: Setting, tokens: int) -> int:
    return (4 * setting.frames + 8) * -(-tokens // choose_page_rows(tokens))


def table(settings: Sequence[Setting]) -> Iterator[str]:
    """Markdown, a row for every setting but its lag, a column for every lag."""
    lags = sorted({setting.lag for setting in settings})
    heads = ["solver", "steps", "frames", "window", "variance", "denoiser", *(f"lag {lag}" for lag in lags)]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    rows: dict[tuple[object, ...], dict[int, float]] = {}
    for setting in settings:
        window = "all" if setting.window is None else setting.window
        sight = "causal" if setting.causal else "bidirectional"
        key: tuple[object, ...] = (
            setting.solver + (f", eta {setting.eta:g}" if setting.eta else ""),
            setting.steps,
            setting.frames,
            window,
            f"{setting.variance:g}",
            sight,
        )
        rows.setdefault(key, {})[setting.lag] = distance(setting)
    for key, found in rows.items():
        cells = [f"{found[lag]:.5f}" if lag in found else "" for lag in lags]
        yield f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.gaussian_bed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[50], help="solver steps (%(default)s)")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 5, 10, 50], help="lags (%(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a video (%(default)s)")
    parser.add_argument("--window", type=int, help="frames seen at most, computed anew in every pass (all)")
    parser.add_argument("--variance", type=float, default=1.0, help="of a pixel (%(default)s)")
    parser.add_argument("--eta", type=float, default=0.0, help="of DDIM, 0 to 1 (%(default)s)")
    parser.add_argument("--solver", choices=SOLVERS, nargs="+", default=["ddim"], help="(%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    settings = [
        Setting(steps, lag, causal, options.frames, options.window, options.variance, solver, options.eta)
        for solver in options.solver
        for steps in options.steps
        for causal in (True, False)
        for lag in options.lags
        if lag <= steps
    ]
    for line in table(settings):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command_end.console(main))
