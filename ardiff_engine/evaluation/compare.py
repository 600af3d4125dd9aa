# SPDX-License-Identifier: Apache-2.0
"""Two folders of videos compared: as sets, by features of a network that you have, or file by file.

    python -m ardiff_engine.evaluation.compare REAL MADE --features i3d.pt      # a Fréchet distance: FVD with
    I3D python -m ardiff_engine.evaluation.compare REAL MADE --paired               # PSNR and SSIM of equal
    names

As sets: the first frames of every made video against as many random windows of the real ones, and as many
other real windows as the baseline.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ardiff_engine import command_end
from ardiff_engine.arguments import integer
from ardiff_engine.data.video_folder import find_videos
from ardiff_engine.errors import ConfigError, DataError
from ardiff_engine.evaluation.fidelity import fidelity
from ardiff_engine.evaluation.frechet import compare
from ardiff_engine.evaluation.video_features import features, find_extractor, firsts, windows
from ardiff_engine.media import read_video
from ardiff_engine.training.lpips import Lpips


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.compare",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument("real", type=Path, help="folder of real videos")
    parser.add_argument("made", type=Path, help="folder of generated ones")
    parser.add_argument(
        "--features",
        help='TorchScript file, which is a program, or "module:function": pixels float32 '
        "[1, 3, frames, size, size] in [-1, 1] -> [d] or [1, d, ...]",
    )
    parser.add_argument("--frames", type=int, default=16, help="of a clip (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels per side (default: %(default)s)")
    parser.add_argument(
        "--stride", type=int, default=1, help="real windows begin every so many frames (%(default)s)"
    )
    parser.add_argument("--clips", type=int, help="made videos that are used (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows (default: %(default)s)")
    parser.add_argument("--paired", action="store_true", help="PSNR and SSIM of the files of equal name")
    parser.add_argument("--lpips", type=Path, help="with --paired: weights of LPIPS (docs/training.md)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    if not options.features and not options.paired:
        raise ConfigError(
            "What to compare: got neither --features nor --paired, expected one of them or both."
        )
    if options.lpips and not options.paired:
        raise ConfigError("--lpips compares file by file: give --paired too.")
    for name, least in (("frames", 1), ("size", 1), ("stride", 1), ("clips", 2)):
        if getattr(options, name) is not None:
            integer(f"--{name}", getattr(options, name), least)
    if options.features:
        extractor = find_extractor(options.features)
        made = firsts(options.made, options.frames, options.clips)
        real = windows(options.real, options.frames, options.stride, 2 * len(made), options.seed)
        found = compare(
            features(extractor, real, options.frames, options.size),
            features(extractor, made, options.frames, options.size),
        )
        print(f"{found} ({options.features}, {options.frames} frames, {options.size} x {options.size})")
    if options.paired:
        _print_fidelity(options.real, options.made, Lpips(options.lpips) if options.lpips else None)
    return 0


def _print_fidelity(real: Path, made: Path, lpips: Lpips | None) -> None:
    by_name = {path.relative_to(real).with_suffix(""): path for path in find_videos(real)}
    rows = []
    for path in find_videos(made):
        name = path.relative_to(made).with_suffix("")
        if name not in by_name:
            raise DataError(f"{path}: no video {name} in {real}. --paired compares files of equal name.")
        row = fidelity(read_video(path), read_video(by_name[name]), lpips=lpips)
        print(f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in row.items()), flush=True)
        rows.append(row)
    means = ", ".join(f"{measure} {np.mean([row[measure] for row in rows]):.4f}" for measure in rows[0])
    print(f"mean of {len(rows)} videos: {means}")


if __name__ == "__main__":
    sys.exit(command_end.console(main))
