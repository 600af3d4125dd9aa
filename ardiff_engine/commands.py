# SPDX-License-Identifier: Apache-2.0
"""What the commands of `ardiff` do; cli.py says how they are called. Each returns its exit code.

What a command needs is imported when it runs, so that `ardiff --help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ardiff_engine.command_end import EXIT_FAILED

if TYPE_CHECKING:
    from ardiff_engine.media import Clip
    from ardiff_engine.pipeline import Pipeline


STEPS, LAG, GUIDANCE, FRAMES = 50, 5, 1.0, 16
"""Of the frame models."""


def generate(options: argparse.Namespace) -> int:
    from ardiff_engine import commands_video
    from ardiff_engine.media import export_video

    if commands_video.wanted(options):
        return commands_video.generate(options)
    _set_usual(options)
    options.frames = FRAMES if options.frames is None else options.frames
    _check_out(options)
    if options.plan_picture is not None:
        _check_picture(options.plan_picture)
    pipe = _pipeline(options)
    clip = _given_clip(options, pipe)
    fps = _check_out(options, pipe, clip)
    if options.plan_picture is not None:
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
        if options.plan_picture is not None:
            print(f"{options.plan_picture}: the plan")
    return 0


def stream(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ardiff_engine import commands_video
    from ardiff_engine.media import open_writer
    from ardiff_engine.pipeline.inputs import chosen_seed

    if commands_video.wanted(options):
        return commands_video.stream(options)
    _set_usual(options)
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
    writer = open_writer(options.out, fps, scale=options.scale)
    try:
        with writer:
            for frame in tqdm(frames, total=total, unit="frame", desc="streaming", disable=options.quiet):
                writer.write(frame.image)
    except KeyboardInterrupt:
        # The only way to end an endless stream, so not a failure.
        if options.frames is not None:
            raise
    if not options.quiet:
        print(f"{writer.path}: {writer.count} frames, seed {seed}")
    return 0


def play(options: argparse.Namespace) -> int:
    from ardiff_engine.play.command import play

    return play(options)


def serve(options: argparse.Namespace) -> int:
    try:
        from ardiff_engine.serve import command
    except ImportError as error:
        from ardiff_engine.errors import BackendNotAvailableError

        raise BackendNotAvailableError(
            f"ardiff serve: got no package {error.name}, expected the extra `serve`. Install it by "
            "pip install '.[serve]' in the source checkout."
        ) from error
    return command.serve(options)


def train_vae(options: argparse.Namespace) -> int:
    from ardiff_engine.training import dry_run_train_vae, run_train_vae

    if options.dry_run:
        print(dry_run_train_vae(options.config, options.overrides))
        return 0
    print(f"autoencoder: {run_train_vae(options.config, options.overrides, options.resume)}")
    return 0


def encode(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_encode

    print(f"latents: {run_encode(options.config, options.overrides)}")
    return 0


def train(options: argparse.Namespace) -> int:
    from ardiff_engine.errors import ConfigError
    from ardiff_engine.training import dry_run_train, run_train
    from ardiff_engine.training.loop import BEST_FOLDER
    from ardiff_engine.training.templates import first_words, write_template

    if options.template:
        for path in write_template(options.template, Path(options.template)):
            print(path, *first_words(path), sep="\n    ")
        return 0
    if options.config is None:
        raise ConfigError("config: got none, expected a TOML file, or --template NAME to begin with.")
    if options.dry_run:
        print(dry_run_train(options.config, options.overrides))
        return 0
    folder = run_train(options.config, options.overrides, options.resume)
    print(f"model: {folder}")
    if (folder / BEST_FOLDER).exists():
        print(f"with the lowest validation_loss: {folder / BEST_FOLDER}")
    return 0


def convert(options: argparse.Namespace) -> int:
    from ardiff_engine.weights import convert

    result = convert(options.source, options.target)
    print(f"{result.path}: {result.tensors} tensors")
    for name, why in result.left_out.items():
        print(f"left out: {name} ({why})")
    return 0


def report(options: argparse.Namespace) -> int:
    """See `report.command`."""
    from ardiff_engine.report.command import report

    return report(options)


def bench(options: argparse.Namespace) -> int:
    from ardiff_engine import bench_run, bench_table
    from ardiff_engine.errors import ConfigError
    from ardiff_engine.files import make_folder, write_atomic

    if options.table is not None:
        print(bench_table.markdown(bench_table.read(options.table)))
        return 0
    if options.compare:
        before, after = map(bench_table.read, options.compare)
        print(bench_table.comparison(before, after))
        return 0
    if options.json is not None:
        _check_file(options.json)
    bench_run.check(options.folder)
    found, good = bench_run.measure(options.folder, options.wanted, slow=options.slow)
    print(bench_table.markdown(found), flush=True)
    if options.json is not None:
        make_folder(Path(options.json).parent, error=ConfigError)
        write_atomic(options.json, (json.dumps(found, indent=1) + "\n").encode(), error=ConfigError)
    return 0 if good else EXIT_FAILED


def info(options: argparse.Namespace) -> int:
    from ardiff_engine import info

    if options.model is not None:
        from ardiff_engine import commands_video

        return commands_video.info(options)
    info.main(as_json=options.json)
    return 0


def _set_usual(options: argparse.Namespace) -> None:
    """What a frame model takes where nothing was said; a text-to-video model asks its system."""
    for name, usual in (("steps", STEPS), ("lag", LAG), ("guidance", GUIDANCE)):
        if getattr(options, name) is None:
            setattr(options, name, usual)


def _pipeline(options: argparse.Namespace) -> Pipeline:
    import torch

    from ardiff_engine.pipeline import Pipeline

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return Pipeline.from_pretrained(options.model, device=options.device, dtype=dtypes[options.dtype])


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
    from ardiff_engine.pipeline.output import DEFAULT_FPS

    fps = options.fps
    if fps is None:
        fps = DEFAULT_FPS if clip is None or clip.fps is None else clip.fps
    target = check_target(options.out, fps, scale=options.scale, growing=growing)
    if pipe is not None:
        size = pipe.vae.config.image_size
        check_size(target, options.frames or 1, size, size, scale=options.scale)
    return float(fps)


def _check_picture(path: str) -> None:
    from ardiff_engine.plan.picture import check_picture

    check_picture(path)
    _check_file(path)


def _check_file(path: str) -> None:
    """Refuses a file that could not be written after the work."""
    from ardiff_engine.errors import ConfigError
    from ardiff_engine.media.staging import check_parents, is_folder

    if not path or is_folder(Path(path)):
        raise ConfigError(f"got {path!r}, expected the name of a file. Choose another name.")
    check_parents(Path(path))


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
