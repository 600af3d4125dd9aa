# SPDX-License-Identifier: Apache-2.0
"""`python -m ardiff_engine.evaluation --model moving-digits`: readability and motion of generated videos, as
JSON and Markdown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ardiff_engine import command_end
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.evaluation.digit_classifier import load_or_train
from ardiff_engine.evaluation.digits import evaluate
from ardiff_engine.media.staging import check_parents
from ardiff_engine.parsing import read_json
from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.files import ASSETS
from ardiff_engine.settings import build


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ardiff_engine.evaluation", description=__doc__)
    parser.add_argument("--model", default="moving-digits", help="bundled model or pipeline folder")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/evaluation"),
        help="folder for evaluation.json and evaluation.md (default: %(default)s)",
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path("outputs/evaluation/classifier.safetensors"),
        help="where the digit classifier is kept; trained when missing (default: %(default)s)",
    )
    parser.add_argument(
        "--lags", type=int, nargs="+", default=[0, 5, 10, 50], help="lags to evaluate (default: %(default)s)"
    )
    parser.add_argument(
        "--clips", type=int, default=10, help="generated videos per lag (default: %(default)s)"
    )
    parser.add_argument(
        "--continuations",
        type=int,
        default=10,
        help="continued held-out clips per lag (default: %(default)s)",
    )
    parser.add_argument(
        "--frames", type=int, default=64, help="length of the generated videos (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="denoising steps per frame (default: %(default)s)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="guidance scale of videos and continuations; 1 switches it off (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="key of all noise (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    device = usable_device(options.device)
    for name in ("evaluation.json", "evaluation.md"):
        check_parents(options.output / name)
    digits = trained_digits(options.model)
    report = evaluate(
        Pipeline.from_pretrained(options.model, device=device),
        load_or_train(digits, options.classifier),
        digits,
        lags=options.lags,
        clips=options.clips,
        continuations=options.continuations,
        frames=options.frames,
        steps=options.steps,
        guidance_scale=options.guidance,
        seed=options.seed,
    )
    report.save(options.output)
    print(report.markdown())
    return 0


def trained_digits(model: str) -> MovingDigits:
    """The digits that a model was trained on, from its training_config.json; the defaults where it has
    none."""
    for folder in (ASSETS / model, Path(model)):
        path = folder / "training_config.json"
        if path.is_file():
            values = read_json(path)
            data = values.get("data") if isinstance(values, dict) else None
            digits = data.get("digits") if isinstance(data, dict) else None
            if not isinstance(digits, dict):
                raise CheckpointError(
                    f"{path} has no data.digits. Train the model again, or remove the file."
                )
            try:
                return build(MovingDigits, digits, "data.digits.")
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
    return MovingDigits()


if __name__ == "__main__":
    sys.exit(command_end.console(main))
