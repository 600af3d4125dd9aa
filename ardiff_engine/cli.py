# SPDX-License-Identifier: Apache-2.0
"""The `ardiff` command: a thin layer of names over the Python functions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ardiff_engine import command_end, commands
from ardiff_engine.cli_command import Subparsers, command
from ardiff_engine.cli_training import add_training

DEFAULT_MODEL = "moving-digits"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return command_end.run(build_parser(), arguments)


def console() -> int:
    """What the installed `ardiff` calls."""
    code = command_end.console(main)
    if "WORLD_SIZE" in os.environ:  # torchrun has started this process
        command_end.at_once(code)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="ardiff", description="Asynchronous, autoregressive video diffusion: generate, stream, train."
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(subparsers)
    _add_stream(subparsers)
    _add_play(subparsers)
    _add_serve(subparsers)
    add_training(subparsers)
    _add_convert(subparsers)
    _add_bench(subparsers)
    _add_report(subparsers)
    _add_info(subparsers)
    return parser


# ---------------------------------------------------------------------------------------------------- parsers


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model or a model folder (default: %(default)s)"
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="S",
        help=f"denoising steps per frame (default: {commands.STEPS}, or those of --system)",
    )
    group.add_argument(
        "--lag",
        type=int,
        metavar="L",
        help="steps that a frame lags behind the one before it: 0 denoises all frames together, "
        f"S one after the other (default: {commands.LAG})",
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="G",
        help="guidance scale; 1 switches guidance off (default: 1, or that of --system)",
    )
    group.add_argument(
        "--class",
        type=int,
        dest="class_id",
        metavar="ID",
        help="class to generate, for class-conditional models",
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="the same seed gives the same video (default: a new one, shown)"
    )
    group.add_argument(
        "--video", metavar="PATH", help="continue this video: mp4, webp, gif or a folder of png"
    )
    group.add_argument("--video-frames", type=int, metavar="N", help="use only the first N frames of --video")
    group.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    _add_parts(parser)
    text = parser.add_argument_group("text to video")
    text.add_argument("--prompt", metavar="TEXT", help="what the video shows")
    text.add_argument(
        "--prompts",
        metavar="PATH",
        help='a .json file with prompts by the frame they begin with: {"0": "a cat", "41": "a dog"}',
    )
    text.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    text.add_argument(
        "--guidance-2", type=float, metavar="G", help="of the transformer for low noise, for models with two"
    )
    text.add_argument("--image", metavar="PATH", help="the first frame of the video")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    """How a text-to-video model is run, and parts that do not lie in its folder."""
    group = parser.add_argument_group("text-to-video model")
    group.add_argument("--system", metavar="NAME", help="how it is run: self-forcing, longlive, wan, …")
    group.add_argument("--size", type=_size, metavar="HxW", help="of the pictures (default: 480x832)")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights (default: %(default)s)",
    )
    for part, what in (("transformer", "a distilled one, say"), ("vae", "of the autoencoder"),
                       ("text", "with text_encoder/ and tokenizer/")):  # fmt: skip
        group.add_argument(f"--{part}", metavar="PATH", help=f"in place of the folder's own: {what}")
    of_lora = "merged into the transformer; twice for models with two: high noise, then low"
    group.add_argument("--lora", metavar="PATH", action="append", help=of_lora)
    group.add_argument("--tile", type=_size, metavar="HxW", help="latents to decode at a time, such as 32x32")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected height x width such as 480x832")
    return int(height), int(width)


def _add_output(parser: argparse.ArgumentParser, default: str, kinds: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=default, metavar="PATH", help=f"{kinds} (default: %(default)s)")
    group.add_argument(
        "--fps", type=float, metavar="N", help="frames per second (default: of --video, of --system, or 8)"
    )
    group.add_argument(
        "--scale", type=int, default=1, metavar="N", help="draw each pixel as N x N (default: %(default)s)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar and no closing lines")


def _add_generate(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "generate",
        "generate one video, or continue one",
        commands.generate,
        [
            "ardiff generate --frames 64 --seed 1 --out digits.mp4 --scale 8",
            "ardiff generate --video clip.mp4 --video-frames 8 --frames 64 --out longer.webp",
            "ardiff generate --frames 32 --lag 10 --plan-picture plan.png --out frames/",
            'ardiff generate --model FOLDER --system longlive --prompt "a cat walks" --out cat.mp4',
        ],
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help=f"frames of the result, those of --video included (default: {commands.FRAMES}; of text: 81)",
    )
    _add_sampling(parser)
    parser.add_argument(
        "--given",
        choices=["pixels", "decoded"],
        default="pixels",
        help="how the frames of --video appear in the result: as they are, or as the autoencoder gives them "
        "back, so that no seam shows where the new ones begin (default: %(default)s)",
    )
    _add_output(parser, "video.mp4", "a file ending in .mp4, .webp or .gif, or a folder for .png files")
    parser.add_argument(
        "--plan-picture",
        metavar="PATH",
        help="also draw which frame takes which step when, coloured by timestep, as .png",
    )


def _add_stream(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "stream",
        "write frames as they become clean; endless unless --frames is given",
        commands.stream,
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


def _add_play(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "play",
        "show a model in the terminal and steer it by keys",
        commands.play,
        ["ardiff play", "ardiff play --model FOLDER --frames 48 --keys ....llll....rrrr --out played.webp"],
    )
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help="a bundled or steered model (default: %(default)s)")
    add("--prompt", metavar="TEXT", help="what a steered model shows")
    add("--size", type=_size, metavar="HxW", help="of a steered model's pictures (default: as trained)")
    add("--steps", type=int, metavar="S", help="denoising steps (default: 4, of digits 20)")
    add("--seed", type=int, metavar="N", help="the same seed and keys give the same video")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add("--frames", type=int, metavar="N", help="stop after N frames (default: endless)")
    add(
        "--keys", metavar="TEXT", help="pressed by itself, one letter a frame: l, r, u, d, digits, . for none"
    )
    add("--out", metavar="PATH", help="write a file instead, .mp4, .webp, .gif, or a folder of png")


def _add_serve(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "serve",
        "serve one model to many people: OpenAI's videos, live streams, a page",
        commands.serve,
        [
            "ardiff serve                             # moving-digits at http://127.0.0.1:8000",
            "ardiff serve --host 0.0.0.0 --api-key-file keys.txt",
            "ardiff serve --model moving-shapes       # steered by captions and arrow keys",
            "ardiff serve --model FOLDER --system longlive --device cuda --dtype bfloat16",
            "ardiff serve --ray 2                     # two engines, in processes of Ray",
        ],
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a bundled model or a model folder (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    _add_parts(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    group.add_argument(
        "--port", type=int, default=8000, metavar="N", help="0: any that is free (default: %(default)s)"
    )
    group.add_argument(
        "--api-key-file", metavar="PATH", help="keys, one a line; without it only this machine is served"
    )
    group.add_argument(
        "--data",
        default="ardiff-videos",
        metavar="PATH",
        help="folder of finished videos (default: %(default)s)",
    )
    group.add_argument(
        "--streams", type=int, default=8, metavar="N", help="videos that run at a time (default: %(default)s)"
    )
    group.add_argument(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="videos that may wait beyond (default: %(default)s)",
    )
    group.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="of the longest video (default: %(default)s)"
    )
    group.add_argument(
        "--ray", type=int, metavar="N", help="engines, each in a process of Ray Serve, behind this server"
    )
    group.add_argument("--quiet", action="store_true", help="print nothing")


def _add_convert(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "convert",
        "rewrite pickle-based weights as safetensors, without running code in them",
        commands.convert,
        ["ardiff convert ar_diffusion.pt ar_diffusion.safetensors"],
    )
    parser.add_argument("source", help="a .pt, .pth, .bin or .ckpt file")
    parser.add_argument("target", help="the .safetensors file to write")


def _add_bench(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "bench",
        "run the benchmarks of a source checkout and print one table",
        commands.bench,
        [
            "ardiff bench",
            "ardiff bench -k frame_attention -k '12 x 128' --json now.json",
            "ardiff bench --table now.json            # the table again, as Markdown",
            "ardiff bench --compare before.json now.json",
        ],
    )
    parser.add_argument(
        "-k",
        dest="wanted",
        action="append",
        default=[],
        metavar="TEXT",
        help="only rows of the table, or benchmarks, that this is part of: an op, a shape, an opponent, "
        "threads=1; may be given several times",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument(
        "--slow", action="store_true", help="those of the whole engine too, which take an hour"
    )
    parser.add_argument(
        "--folder", default="benchmarks", help="where the benchmarks lie (default: %(default)s)"
    )
    stored = parser.add_mutually_exclusive_group()
    stored.add_argument("--table", metavar="RECORD", help="measure nothing: print the table of a record")
    stored.add_argument(
        "--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="measure nothing: compare two records"
    )


def _add_report(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "report",
        "put evaluations, training runs, videos and pictures on one page of HTML",
        commands.report,
        ["ardiff report outputs/evaluation outputs/my_run video.mp4 --out report.html"],
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a folder with evaluation.json or training_log.jsonl, a video or a picture",
    )
    parser.add_argument(
        "--out", default="report.html", metavar="PATH", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--title", default="Report", metavar="TEXT", help="its heading (default: %(default)s)"
    )


def _add_info(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "info",
        "show versions, backends and why each was chosen; or what the folder of a model holds",
        commands.info,
        ["ardiff info", "ardiff info --json", "ardiff info FOLDER --streams 8 --size 480x832"],
    )
    parser.add_argument("model", nargs="?", metavar="FOLDER", help="of a text-to-video model")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--frames", type=int, metavar="N", help="of a video (default: about 81)")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="videos at a time (default: 1)")
    _add_parts(parser)


def _version() -> str:
    from ardiff_engine.version import __version__

    return f"ardiff-engine {__version__}"


if __name__ == "__main__":
    sys.exit(console())
