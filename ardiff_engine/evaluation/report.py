# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a pipeline on moving digits, beside the same figures of real clips and of their
reconstructions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ardiff_engine.data.clips import to_images
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.evaluation.continuations import continue_clips
from ardiff_engine.evaluation.digit_classifier import DigitClassifier
from ardiff_engine.evaluation.motion import position_errors
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.pipeline import Pipeline

CONFIDENT = 0.8
FIRST = 8
COLUMNS = (
    "",
    "frames",
    "videos",
    "constant",
    "readable",
    "digit as asked",
    "position error (px), first 8 predicted frames",
    "last frame",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the classifier says of videos.

    constant: share of frames that are read with p >= 0.8 as the digit that most of the video's frames show.
    readable: share of frames read with p >= 0.8. as_asked: share of videos whose digit is the given class
        (None: no class given).
    """

    constant: float
    readable: float
    as_asked: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. position_error: pixels, per predicted frame; seconds: wall time of all videos
    of this line."""

    name: str
    frames: int
    videos: int
    reading: Reading
    position_error: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """rows: real clips, their reconstructions, "last frame held", then one row per lag."""

    classifier_accuracy: float
    given: int
    steps: int
    rows: tuple[Row, ...]

    def save(self, folder: Path) -> None:
        """evaluation.json and evaluation.md."""
        make_folder(folder)
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_atomic(folder / "evaluation.json", text.encode())
        table = self.markdown()
        write_atomic(folder / "evaluation.md", table.encode())

    def markdown(self) -> str:
        lines = [
            f"Classifier accuracy on held-out scans: {self.classifier_accuracy:.1%}. "
            f"Solver steps: {self.steps}. Continuations see {self.given} real frames.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
        ]
        for row in self.rows:
            reading, error = row.reading, row.position_error
            cells = [
                row.name,
                str(row.frames),
                str(row.videos),
                f"{reading.constant:.1%}",
                f"{reading.readable:.1%}",
                "" if reading.as_asked is None else f"{reading.as_asked:.0%}",
                f"{np.mean(error[:FIRST]):.2f}",
                f"{error[-1]:.2f}",
                f"{row.seconds:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *self._errors_by_frame()]) + "\n"

    def _errors_by_frame(self) -> list[str]:
        """The position error of predicted frames 1 .. 8; empty where a row predicts fewer."""
        heads = ("position error (px) in predicted frame", *map(str, range(1, FIRST + 1)))
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in self.rows:
            errors = [f"{value:.2f}" for value in row.position_error[:FIRST]]
            errors += [""] * (FIRST - len(errors))
            lines.append("| " + " | ".join([row.name, *errors]) + " |")
        return lines


def evaluate(
    pipeline: Pipeline,
    classifier: DigitClassifier,
    digits: MovingDigits,
    *,
    lags: Sequence[int] = (0, 5, 10, 50),
    clips: int = 10,
    continuations: int = 10,
    frames: int = 64,
    given: int = 8,
    predicted: int = 16,
    steps: int = 50,
    guidance_scale: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Generates and continues videos at every lag.

    Args:
        digits: the data set that the model was trained on; its held-out split gives the real clips.
        clips: generated videos per lag, their classes in turn, of `frames` frames. A lag that is too small
            for its videos to be longer than the model's window (lag · window < steps) is evaluated on one
            window.
        continuations: held-out clips per lag; `given` real frames go in, `predicted` are compared with the
            truth. They are not told the class, except with guidance, which needs one.
        guidance_scale: of generated videos and of continuations.
    """
    window = pipeline.transformer.spec.num_frames
    if not 0 < given < window:
        raise ConfigError(
            explain(
                "given",
                got=given,
                expected=f"1..{window - 1}",
                fix="Give at least one frame less than the window.",
            )
        )
    for name, value in (("clips", clips), ("continuations", continuations), ("predicted", predicted)):
        if value < 1:
            raise ConfigError(explain(name, got=value, expected=">= 1", fix="Ask for at least one."))
    real = replace(digits, split="held_out").batch(
        np.arange(max(clips, continuations)), num_frames=max(frames, given + predicted)
    )
    videos, labels = real[0], real[2][:, 0]
    rebuilt = reconstruct(pipeline, videos)
    compared = slice(given, given + predicted)
    held = np.repeat(videos[:, given - 1 : given], predicted, axis=1)
    rows = [
        _row("real clips", videos, labels, classifier, videos[:, compared], videos[:, compared], 0.0),
        _row("reconstructions", rebuilt, labels, classifier, rebuilt[:, compared], videos[:, compared], 0.0),
        _row("last given frame held", held, labels, classifier, held, videos[:, compared], 0.0),
    ]
    for lag in tqdm(lags, desc="lags", disable=not progress):
        started = time.perf_counter()
        endless = lag * window >= steps
        length = frames if endless else min(frames, window)
        conditional = pipeline.transformer.config.num_classes is not None
        classes = [index % 10 for index in range(clips)] if conditional else None
        made = pipeline(
            num_frames=length,
            num_videos=clips,
            num_inference_steps=steps,
            lag=lag,
            guidance_scale=guidance_scale,
            seed=seed,
            class_id=classes,
            progress=progress,
        ).frames.numpy()
        total = given + predicted if endless else min(given + predicted, window)
        told = conditional and guidance_scale != 1
        continued = continue_clips(
            pipeline,
            videos[:continuations, :given],
            labels[:continuations].tolist() if told else [None] * continuations,
            num_frames=total,
            steps=steps,
            lag=lag,
            guidance_scale=guidance_scale,
            seed=seed,
            progress=progress,
        )
        rows.append(
            _row(
                f"lag {lag}",
                made,
                None if classes is None else np.array(classes),
                classifier,
                continued,
                videos[:continuations, given:total],
                time.perf_counter() - started,
            )
        )
    return Report(classifier.held_out_accuracy, given, steps, tuple(rows))


def read(
    classifier: DigitClassifier, videos: NDArray[np.uint8], classes: NDArray[np.int64] | None
) -> Reading:
    """videos uint8 [N, T, H, W, 3]; classes [N], or None where none was asked for."""
    probabilities = classifier.probabilities(videos)
    digits, sure = probabilities.argmax(axis=-1), probabilities.max(axis=-1) >= CONFIDENT
    majority = np.array([np.bincount(row, minlength=10).argmax() for row in digits])
    constant = sure & (digits == majority[:, None])
    asked = None if classes is None else float((majority == classes[: len(majority)]).mean())
    return Reading(float(constant.mean()), float(sure.mean()), asked)


@torch.no_grad()
def reconstruct(pipeline: Pipeline, videos: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Videos through the autoencoder and back."""
    weight = next(pipeline.vae.parameters())
    decoded = [
        pipeline.vae.decode(pipeline.vae.encode(to_images(video).to(weight)[None]))[0]
        .clamp(0, 1)
        .movedim(-3, -1)
        for video in videos
    ]
    return (torch.stack(decoded) * 255).round().to(torch.uint8).cpu().numpy()


def _row(
    name: str,
    videos: NDArray[np.uint8],
    classes: NDArray[np.int64] | None,
    classifier: DigitClassifier,
    continued: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    seconds: float,
) -> Row:
    error = position_errors(continued, truth).mean(axis=0)
    reading = read(classifier, videos, classes)
    return Row(
        name,
        videos.shape[1],
        len(videos),
        reading,
        tuple(round(float(value), 3) for value in error),
        round(seconds, 1),
    )
