# SPDX-License-Identifier: Apache-2.0
"""The `ardiff` command: a thin layer of names over the Python functions.

Exit codes: 0 done, 2 a mistake in what was asked (one line says which), 130 stopped by Ctrl-C. What a command
needs is imported when it runs, so `ardiff --help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ardiff_engine.media.frames import Pixels
    from ardiff_engine.pipeline import Pipeline

DEFAULT_MODEL = "moving-digits"
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    from ardiff_engine.errors import ArdiffError

    try:
        return run(options)
    except ArdiffError as error:
        if options.debug:
            raise
        print(f"ardiff: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("ardiff: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="ardiff", description="Asynchronous, autoregressive video diffusion: generate, stream, train."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_stream(commands)
    _add_training(commands, "train-vae", "train the frame autoencoder (stage 1)", _train_vae, resumable=True)
    _add_training(
        commands,
        "encode",
        "turn videos into latent files with a trained autoencoder",
        _encode,
        resumable=False,
    )
    _add_training(commands, "train", "train the diffusion transformer (stage 2)", _train, resumable=True)
    _add_convert(commands)
    _add_bench(commands)
    _add_info(commands)
    return parser


# ---------------------------------------------------------------------------------------------------- parsers


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model or a model folder (default: %(default)s)"
    )
    group.add_argument(
        "--steps", type=int, default=50, metavar="S", help="denoising steps per frame (default: %(default)s)"
    )
    group.add_argument(
        "--lag",
        type=int,
        default=5,
        metavar="L",
        help="steps that a frame lags behind the one before it: 0 denoises all frames together, "
        "S one after the other (default: %(default)s)",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="G",
        help="guidance scale; 1 switches guidance off (default: %(default)s)",
    )
    group.add_argument(
        "--class",
        type=int,
        dest="class_id",
        metavar="ID",
        help="class to generate, for class-conditional models",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same video (default: %(default)s)"
    )
    group.add_argument(
        "--video", metavar="PATH", help="continue this video: mp4, webp, gif or a folder of png"
    )
    group.add_argument("--video-frames", type=int, metavar="N", help="use only the first N frames of --video")
    group.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")


def _add_output(parser: argparse.ArgumentParser, default: str, kinds: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=default, metavar="PATH", help=f"{kinds} (default: %(default)s)")
    group.add_argument("--fps", type=float, default=8.0, help="frames per second (default: %(default)s)")
    group.add_argument(
        "--scale", type=int, default=1, metavar="N", help="draw each pixel as N x N (default: %(default)s)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar and no closing lines")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "generate",
        "generate one video, or continue one",
        _generate,
        [
            "ardiff generate --frames 64 --seed 1 --out digits.mp4 --scale 8",
            "ardiff generate --video clip.mp4 --video-frames 8 --frames 64 --out longer.webp",
            "ardiff generate --frames 32 --lag 10 --plan-picture plan.png --out frames/",
        ],
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=16,
        metavar="N",
        help="frames of the result, those of --video included (default: %(default)s)",
    )
    _add_sampling(parser)
    _add_output(parser, "video.mp4", "a file ending in .mp4, .webp or .gif, or a folder for .png files")
    parser.add_argument(
        "--plan-picture",
        metavar="PATH",
        help="also draw which frame takes which step when, coloured by timestep, as .png",
    )


def _add_stream(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "stream",
        "write frames as they become clean; endless unless --frames is given",
        _stream,
        [
            "ardiff stream --out live                 # a folder of png; Ctrl-C ends it",
            "ardiff stream --frames 200 --lag 10 --out live.mp4",
        ],
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="stop after N frames, counting those of --video, which are not written again (default: endless)",
    )
    _add_sampling(parser)
    _add_output(parser, "stream", "a folder for .png files, or an .mp4 that plays while it grows")


def _add_training(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *,
    resumable: bool,
) -> None:
    examples = [f"ardiff {name} config.toml", f"ardiff {name} config.toml --set device=cuda"]
    if resumable:
        examples = [
            f"ardiff {name} config.toml",
            f"ardiff {name} config.toml --set run.steps=2000 --set optimizer.lr=3e-4",
            f"ardiff {name} config.toml --resume",
        ]
    parser = _command(commands, name, summary, run, examples)
    parser.add_argument(
        "config",
        help="settings as TOML; docs/training.md explains them, ardiff_engine/training/config.py lists them",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting of the file; may be given several times",
    )
    if resumable:
        parser.add_argument(
            "--resume", action="store_true", help="continue from the newest checkpoint in the output folder"
        )


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "convert",
        "rewrite pickle-based weights as safetensors, without running code in them",
        _convert,
        ["ardiff convert ar_diffusion.pt ar_diffusion.safetensors"],
    )
    parser.add_argument("source", help="a .pt, .pth, .bin or .ckpt file")
    parser.add_argument("target", help="the .safetensors file to write")


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "bench",
        "run the benchmarks of a source checkout with pytest-benchmark",
        _bench,
        ["ardiff bench", "ardiff bench -k frame_attention --json results.json"],
    )
    parser.add_argument("-k", dest="keyword", metavar="EXPR", help="only benchmarks whose names match")
    parser.add_argument("--json", metavar="PATH", help="also write the measurements to this file")
    parser.add_argument(
        "--folder", default="benchmarks", help="where the benchmarks lie (default: %(default)s)"
    )


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "info",
        "show versions, backends and why each was chosen",
        _info,
        ["ardiff info", "ardiff info --json"],
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")


# --------------------------------------------------------------------------------------------------- commands


def _generate(options: argparse.Namespace) -> int:
    from ardiff_engine.media import check_target, export_video

    check_target(options.out, options.fps, scale=options.scale)
    if options.plan_picture:
        _check_picture(options.plan_picture)
    pipe = _pipeline(options)
    video = _given_video(options)
    if options.plan_picture:
        _draw_plan(options, pipe, 0 if video is None else len(video))
    started = time.perf_counter()
    output = pipe(
        num_frames=options.frames,
        num_inference_steps=options.steps,
        lag=options.lag,
        guidance_scale=options.guidance,
        class_id=options.class_id,
        seed=options.seed,
        video=video,
        progress=not options.quiet,
    )
    seconds = time.perf_counter() - started
    target = export_video(output.frames[0], options.out, options.fps, scale=options.scale)
    if not options.quiet:
        print(f"{target}: {options.frames} frames in {seconds:.1f} s")
        if options.plan_picture:
            print(f"{options.plan_picture}: the plan")
    return 0


def _stream(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ardiff_engine.media import check_target, open_writer

    check_target(options.out, options.fps, scale=options.scale, growing=True)
    pipe = _pipeline(options)
    video = _given_video(options)
    frames = pipe.stream(
        num_frames=options.frames,
        num_inference_steps=options.steps,
        lag=options.lag,
        guidance_scale=options.guidance,
        class_id=options.class_id,
        seed=options.seed,
        video=video,
    )
    total = None if options.frames is None else options.frames - (0 if video is None else len(video))
    with open_writer(options.out, options.fps, scale=options.scale) as writer:
        try:
            for frame in tqdm(frames, total=total, unit="frame", desc="streaming", disable=options.quiet):
                writer.write(frame.image)
        except KeyboardInterrupt:
            # The only way to end an endless stream, so not a failure.
            if options.frames is not None:
                raise
    if not options.quiet:
        print(f"{writer.path}: {writer.count} frames")
    return 0


def _train_vae(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_train_vae

    print(f"autoencoder: {run_train_vae(options.config, options.overrides, options.resume)}")
    return 0


def _encode(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_encode

    print(f"latents: {run_encode(options.config, options.overrides)}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from ardiff_engine.training import run_train

    print(f"model: {run_train(options.config, options.overrides, options.resume)}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from ardiff_engine.weights import convert

    result = convert(options.source, options.target)
    print(f"{result.path}: {result.tensors} tensors")
    if result.skipped:
        print(f"left out, because they are no tensors: {', '.join(result.skipped)}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    import importlib.util
    import subprocess

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
    command += ["-o", "python_files=bench_*.py"]
    if options.keyword:
        command += ["-k", options.keyword]
    if options.json:
        command += [f"--benchmark-json={options.json}"]
    return subprocess.run(command, check=False).returncode


def _info(options: argparse.Namespace) -> int:
    from ardiff_engine import info

    info.main(as_json=options.json)
    return 0


def _pipeline(options: argparse.Namespace) -> Pipeline:
    from ardiff_engine.pipeline import Pipeline

    return Pipeline.from_pretrained(options.model, device=options.device)


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


def _given_video(options: argparse.Namespace) -> Pixels | None:
    from ardiff_engine.errors import ConfigError, explain
    from ardiff_engine.media import read_video

    if options.video is None:
        if options.video_frames is not None:
            raise ConfigError(
                explain(
                    "--video-frames",
                    got="no --video",
                    expected="a video to continue",
                    fix="Add --video PATH.",
                )
            )
        return None
    return read_video(options.video, options.video_frames)


def _version() -> str:
    from ardiff_engine.version import __version__

    return f"ardiff-engine {__version__}"


if __name__ == "__main__":
    sys.exit(main())
