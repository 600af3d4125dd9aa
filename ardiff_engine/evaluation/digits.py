# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a pipeline on moving digits, beside the same figures of real clips, of their
reconstructions and of spoiled ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ardiff_engine.data.clips import to_images
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.continuations import continue_clips
from ardiff_engine.evaluation.digit_classifier import DigitClassifier
from ardiff_engine.evaluation.digit_measures import measure_continuations, measure_videos
from ardiff_engine.evaluation.motion import position_errors
from ardiff_engine.evaluation.report import Report, Row
from ardiff_engine.evaluation.spoiled import SPOILED, Video
from ardiff_engine.pipeline import Pipeline


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
            f"given: got {given}, expected 1..{window - 1}. Give at least one frame less than the window."
        )
    for name, value in (("clips", clips), ("continuations", continuations), ("predicted", predicted)):
        if value < 1:
            raise ConfigError(f"{name}: got {value}, expected >= 1.")
    started = time.perf_counter()
    real = replace(digits, split="held_out").batch(
        np.arange(max(clips, continuations)), num_frames=max(frames, given + predicted)
    )
    videos, labels = real[0], real[2][:, 0]
    starts, truth = videos[:continuations, :given], videos[:continuations, given : given + predicted]

    def row(name: str, made: Video, classes: NDArray[np.int64] | None, continued: Video) -> Row:
        return Row(
            name,
            made.shape[1],
            time.perf_counter() - started,
            measure_videos(classifier, made, classes),
            measure_continuations(starts[:, -1], continued, truth[:, : continued.shape[1]]),
            position_errors(continued, truth[:, : continued.shape[1]]),
        )

    shown = videos[:clips, :frames]
    rebuilt = reconstruct(pipeline, videos)
    rows = [
        row("real clips", shown, labels[:clips], truth),
        row(
            "reconstructions",
            rebuilt[:clips, :frames],
            labels[:clips],
            rebuilt[:continuations, given : given + predicted],
        ),
    ]
    for name, spoil in SPOILED.items():
        after = spoil(videos[:continuations, given - 1 : given + predicted])[:, 1:]
        rows.append(row(name, spoil(shown), labels[:clips], after))
    conditional = pipeline.transformer.config.num_classes is not None
    for lag in tqdm(lags, desc="lags", disable=not progress):
        started = time.perf_counter()
        endless = lag * window >= steps
        classes = np.arange(clips) % 10 if conditional else None
        made = pipeline(
            num_frames=frames if endless else min(frames, window),
            num_videos=clips,
            num_inference_steps=steps,
            lag=lag,
            guidance_scale=guidance_scale,
            seed=seed,
            class_id=None if classes is None else classes.tolist(),
            progress=progress,
        ).frames.numpy()
        told = conditional and guidance_scale != 1
        continued = continue_clips(
            pipeline,
            starts,
            labels[:continuations].tolist() if told else [None] * continuations,
            num_frames=given + predicted if endless else min(given + predicted, window),
            steps=steps,
            lag=lag,
            guidance_scale=guidance_scale,
            seed=seed,
            progress=progress,
        )
        rows.append(row(f"lag {lag}", made, classes, continued))
    return Report(classifier.held_out_accuracy, given, steps, tuple(rows), tuple(f"lag {n}" for n in lags))


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
