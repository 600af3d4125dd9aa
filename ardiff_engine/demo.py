# SPDX-License-Identifier: Apache-2.0
"""The demo: the bundled model draws a video from noise, and continues a real clip that it never saw; another
one, where it is bundled, does what captions and arrow keys say (`demo_shapes`).

`make demo`, or `python -m ardiff_engine.demo --out FOLDER`. Writes the videos, a picture of the plan, and a
contact sheet of real and generated frames.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ardiff_engine import command_end, demo_shapes, plan
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.media import check_target, contact_sheet, export_video
from ardiff_engine.media.frames import Pixels
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.files import steered_folder

FPS = 8.0
SCALE = 8
# Clips like those that the bundled model was trained on (configs/), of handwriting that it never saw.
REAL = MovingDigits(canvas=32, digit_size=18, split="held_out")
CLIP = 3


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """What the demo wrote."""

    video: Path
    animation: Path
    continuation: Path
    plan: Path
    sheet: Path


def run(
    out: Path,
    *,
    model: str = "moving-digits",
    frames: int = 64,
    given: int = 8,
    steps: int = 50,
    lag: int = 5,
    seed: int = 0,
) -> DemoFiles:
    """Runs the demo and prints what it does, how long it takes and where the results are.

    Args:
        out: folder for the results; made if it is missing.
        frames: length of both videos. given: frames of the real clip that the model is shown.
        steps, lag, seed: see `Pipeline`.

    Raises ConfigError when `frames` leaves nothing to continue.
    """
    if frames <= given:
        raise ConfigError(
            explain(
                "frames",
                got=frames,
                expected=f"more than {given}, the frames that the continuation is shown",
                fix="64 suits the bundled model.",
            )
        )
    check_target(out / "demo.mp4", FPS)
    began = time.perf_counter()
    pipe = Pipeline.from_pretrained(model)
    print(
        f"model {model}: loaded in {time.perf_counter() - began:.1f} s, {torch.get_num_threads()} CPU threads"
    )

    drawn, drawn_seconds = _generate(pipe, None, frames, steps, lag, seed)
    print(f"{frames} frames from noise, {steps} steps, lag {lag}: {drawn_seconds:.1f} s")

    real = REAL.clip(CLIP, num_frames=frames).video
    continued, continued_seconds = _generate(pipe, real[:given], frames, steps, lag, seed)
    print(f"{frames - given} frames after {given} real ones: {continued_seconds:.1f} s")

    files = DemoFiles(
        video=export_video(drawn, out / "demo.mp4", FPS, scale=SCALE),
        animation=export_video(drawn, out / "demo.webp", FPS, scale=SCALE // 2),
        continuation=export_video(continued, out / "continuation.mp4", FPS, scale=SCALE),
        plan=out / "plan.png",
        sheet=contact_sheet(
            [drawn, real, continued],
            [
                f"generated from noise: {steps} steps, lag {lag}, seed {seed}",
                "real: a held-out clip of moving digits",
                f"generated: continues the first {given} frames of the real clip",
            ],
            out / "contact_sheet.png",
        ),
    )
    solver = DDIM(pipe.schedule, steps, prediction=pipe.prediction)
    plan.lag(min(frames, 16), steps, lag).plot(files.plan, solver=solver)
    print(f"video             {files.video}")
    print(f"same, as webp     {files.animation}")
    print(f"continuation      {files.continuation}")
    print(f"plan, 16 frames   {files.plan}")
    print(f"real / generated  {files.sheet}")
    print(f"demo finished in {time.perf_counter() - began:.1f} s")
    return files


def _generate(
    pipe: Pipeline, video: Pixels | None, frames: int, steps: int, lag: int, seed: int
) -> tuple[object, float]:
    began = time.perf_counter()
    output = pipe(num_frames=frames, num_inference_steps=steps, lag=lag, seed=seed, video=video)
    return output.frames[0], time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.demo",
        description="Generate a video, continue a real clip, and draw both.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/demo"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--model", default="moving-digits", help="bundled model or folder (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, default=64, help="length of both videos (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=50, help="denoising steps per frame (default: %(default)s)"
    )
    parser.add_argument(
        "--lag",
        type=int,
        default=5,
        help="steps by which a frame runs behind the one before it (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same videos (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    run(
        options.out,
        model=options.model,
        frames=options.frames,
        steps=options.steps,
        lag=options.lag,
        seed=options.seed,
    )
    if steered_folder(demo_shapes.NAME) is not None:
        demo_shapes.run(options.out, seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(command_end.console(main))
