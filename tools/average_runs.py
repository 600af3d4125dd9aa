#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The mean of the weights of two runs of a steered model, of which the second began with the first:

    python tools/average_runs.py outputs/shapes_again outputs/shapes_last --output outputs/shapes_mean

A leg that learns one thing forgets some of another; half-way between both ends a network often has most of
either (Wortsman et al. 2022, arXiv 2203.05482). Log, curve, settings and autoencoder are the second run's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

import ardiff_engine.pipeline.steered  # noqa: F401, kinds of models
from ardiff_engine.weights import load_model, save_model

AVERAGED = ("transformer", "text_encoder")


def average(first: Path, second: Path, output: Path) -> None:
    """ValueError: networks of other sizes. Nothing is written then."""
    means = {}
    for part in AVERAGED:
        mean, other = load_model(first / part), load_model(second / part)
        if mean.config != other.config:
            raise ValueError(f"{part}: got {mean.config} and {other.config}, expected one network in both.")
        theirs = other.state_dict()
        mean.load_state_dict(
            {name: torch.lerp(own, theirs[name], 0.5) for name, own in mean.state_dict().items()}
        )
        means[part] = mean
    shutil.copytree(second, output, ignore=shutil.ignore_patterns("checkpoints", *AVERAGED))
    for part, mean in means.items():
        save_model(mean, output / part)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", type=Path, help="folder that `ardiff train` left")
    parser.add_argument("second", type=Path, help="another one, of a run that began with it")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    options = parser.parse_args(arguments)
    average(options.first, options.second, options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
