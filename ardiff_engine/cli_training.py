# SPDX-License-Identifier: Apache-2.0
"""The commands that take a training config: `train-vae`, `encode`, `train`."""

from __future__ import annotations

import argparse

from ardiff_engine import commands
from ardiff_engine.cli_command import Subparsers, command

CONFIG = "settings as TOML; docs/training.md explains them, ardiff_engine/training/config.py lists them"


def add_training(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "train-vae",
        "train the frame autoencoder (stage 1)",
        commands.train_vae,
        _examples("train-vae"),
    )
    parser.add_argument("config", help=CONFIG)
    _add_settings(parser)
    _add_run(parser)
    parser = command(
        subparsers,
        "encode",
        "turn videos into latent files with a trained autoencoder",
        commands.encode,
        ["ardiff encode config.toml", "ardiff encode config.toml --set device=cuda"],
    )
    parser.add_argument("config", help=CONFIG)
    _add_settings(parser)
    parser = command(
        subparsers,
        "train",
        "train the diffusion transformer (stage 2)",
        commands.train,
        _examples("train"),
    )
    parser.add_argument("config", nargs="?", help=CONFIG)
    _add_settings(parser)
    _add_run(parser)
    parser.add_argument(
        "--template", metavar="NAME", help="write configs to begin with, such as small-videos, to ./NAME"
    )


def _examples(name: str) -> list[str]:
    return [
        f"ardiff {name} config.toml",
        f"ardiff {name} config.toml --set run.steps=2000 --set optimizer.lr=3e-4",
        f"ardiff {name} config.toml --resume",
        f"ardiff {name} config.toml --dry-run",
    ]


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting of the file; may be given several times",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in the output folder"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what memory and time it takes; nothing is written"
    )
