# SPDX-License-Identifier: Apache-2.0
"""What the commands of `ardiff` do; cli.py says how they are called. Each returns its exit code.

What a command needs is imported when it runs, so that `ardiff --help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ardiff_engine.media import Clip
    from ardiff_engine.pipeline import Pipeline


def generate(options: argparse.Namespace) -> int:
    from ardiff_engine.media import export_video

    _check_out(options)
    if options.plan_picture:
        _check_picture(options.plan_picture)
    pipe = _pipeline(options)
    clip = _given_clip(options, pipe)
    fps = _check_out(options, pipe, clip)
    if options.plan_picture:
        _draw_plan(options, pipe, 0 if clip is None else len(clip.frames))
    started = time.perf_counter()
    output = pipe(
        num_frames=options.frames,
        num_inference_steps=options.steps,
        lag=options.lag,
        guidance_scale=options.guidance,
        class_id=options.class_id,
        seed=options.seed,
        video=clip,
        given=options.given,
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - started
    target = export_video(output.frames[0], options.out, fps, scale=options.scale)
    if not options.quiet:
        print(f"{target}: {options.frames} frames in {seconds:.1f} s, seed {output.seed}")
        if options.plan_picture:
            print(f"{options.plan_picture}: the plan")
    return 0


def stream(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ardiff_engine.media import open_writer
    from ardiff_engine.pipeline_inputs import chosen_seed

    _check_out(options, growing=True)
    pipe = _pipeline(options)
    clip = _given_clip(options, pipe)
    fps = _check_out(options, pipe, clip, growing=True)
    seed = chosen_seed(options.seed)
    frames = pipe.stream(
        num_frames=options.frames,
        num_inference_steps=options.steps,
        lag=options.lag,
        guidance_scale=options.guidance,
        class_id=options.class_id,
        seed=seed,
        video=clip,
    )
    total = None if options.frames is None else options.frames - (0 if clip is None else len(clip.frames))
    with open_writer(options.out, fps, scale=options.scale) as writer:
        try:
            for frame in tqdm(frames, total=total, unit="frame", desc="streaming", disable=options.quiet):
                writer.write(frame.image)
        except KeyboardInterrupt:
            # The only way to end an endless stream, so not a failure.
            if options.frames is not None:
                raise
    if not options.quiet:
        print(f"{writer.path}: {writer.count} frames, seed {seed}")
    return 0


def train_vae(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_train_vae

    print(f"autoencoder: {run_train_vae(options.config, options.overrides, options.resume)}")
    return 0


def encode(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_encode

    print(f"latents: {run_encode(options.config, options.overrides)}")
    return 0


def train(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_train

    print(f"model: {run_train(options.config, options.overrides, options.resume)}")
    return 0


def convert(options: argparse.Namespace) -> int:
    from ardiff_engine.weights import convert

    result = convert(options.source, options.target)
    print(f"{result.path}: {result.tensors} tensors")
    for name, why in result.left_out.items():
        print(f"left out: {name} ({why})")
    return 0


def bench(options: argparse.Namespace) -> int:
    from ardiff_engine import bench_table

    if options.table:
        print(bench_table.markdown(bench_table.read(options.table)))
        return 0
    if options.compare:
        before, after = map(bench_table.read, options.compare)
        print(bench_table.comparison(before, after))
        return 0
    return _measure(options)


def info(options: argparse.Namespace) -> int:
    from ardiff_engine import info

    info.main(as_json=options.json)
    return 0


def _measure(options: argparse.Namespace) -> int:
    import importlib.util
    import json
    import subprocess
    import tempfile

    from ardiff_engine import bench_table
    from ardiff_engine.errors import ConfigError, explain

    if not Path(options.folder).is_dir():
        raise ConfigError(
            explain(
                "benchmarks",
                got=f"no folder {options.folder!r} here",
                expected="the root of a source checkout",
                fix="Change to it, or name the folder with --folder.",
            )
        )
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise ConfigError(
            explain(
                "benchmarks",
                got="no pytest-benchmark",
                expected="the development tools",
                fix="pip install 'ardiff-engine[dev]'.",
            )
        )
    command = [sys.executable, "-m", "pytest", options.folder, "--benchmark-only", "-q"]
    command += ["-o", "python_files=bench_*.py", "--benchmark-quiet"]
    if options.keyword:
        command += ["-k", options.keyword]
    if not options.slow:
        command += ["-m", "not slow"]
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured.json"
        code = subprocess.run([*command, f"--benchmark-json={measured}"], check=False).returncode
        # Also after a failure: what was measured before it took its time.
        text = measured.read_text(encoding="utf-8") if measured.is_file() else ""
    if not text:
        return code
    found = bench_table.record(json.loads(text))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(bench_table.markdown(found))
    return code


def _pipeline(options: argparse.Namespace) -> Pipeline:
    from ardiff_engine.pipeline import Pipeline

    return Pipeline.from_pretrained(options.model, device=options.device)


def _check_out(
    options: argparse.Namespace,
    pipe: Pipeline | None = None,
    clip: Clip | None = None,
    *,
    growing: bool = False,
) -> float:
    """Refuses an output that could not be written after the work; without `pipe` what can be seen before it
    is loaded. Returns the frame rate: the one asked for, or that of the given clip."""
    from ardiff_engine.media import check_target
    from ardiff_engine.media.export import check_size
    from ardiff_engine.pipeline_output import DEFAULT_FPS

    fps = options.fps
    if fps is None:
        fps = DEFAULT_FPS if clip is None or clip.fps is None else clip.fps
    target = check_target(options.out, fps, scale=options.scale, growing=growing)
    if pipe is not None:
        size = pipe.vae.config.image_size
        check_size(target, options.frames or 1, size, size, scale=options.scale)
    return float(fps)


def _check_picture(path: str) -> None:
    from ardiff_engine.media.staging import check_parents
    from ardiff_engine.plan.picture import check_picture

    check_parents(check_picture(path))


def _draw_plan(options: argparse.Namespace, pipe: Pipeline, given: int) -> None:
    from ardiff_engine import plan
    from ardiff_engine.diffusion.solvers import DDIM

    solver = DDIM(pipe.schedule, options.steps, prediction=pipe.prediction)
    rule = plan.lag(options.frames, options.steps, options.lag, prefix=given)
    rule.plot(options.plan_picture, solver=solver)


def _given_clip(options: argparse.Namespace, pipe: Pipeline) -> Clip | None:
    from ardiff_engine.errors import ConfigError
    from ardiff_engine.media import read_clip

    if options.video is None:
        if options.video_frames is not None:
            raise ConfigError(
                "--video-frames: got no --video, expected a video to continue. Add --video PATH."
            )
        return None
    return read_clip(options.video, options.video_frames, size=pipe.vae.config.image_size)
