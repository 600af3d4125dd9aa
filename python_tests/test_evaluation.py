# SPDX-License-Identifier: Apache-2.0
"""The measures are right on clips whose truth is known, and the report covers every lag."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.evaluation.digit_classifier import DigitClassifier, load_or_train, train_classifier
from ardiff_engine.evaluation.motion import centroids, position_errors
from ardiff_engine.evaluation.report import evaluate, read
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer, TiTok, TiTokConfig
from ardiff_engine.pipeline import Pipeline

DIGITS = MovingDigits(canvas=16, digit_size=12)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> DigitClassifier:
    return train_classifier(DIGITS, steps=300, progress=False)


def test_classifier_reads_held_out_digits(classifier: DigitClassifier, tmp_path: Path) -> None:
    assert classifier.held_out_accuracy > 0.85
    again = train_classifier(DIGITS, steps=2, progress=False)
    assert again.held_out_accuracy < 0.6
    assert (
        load_or_train(DIGITS, _save(classifier, tmp_path)).held_out_accuracy == classifier.held_out_accuracy
    )


def _save(classifier: DigitClassifier, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(classifier.network.state_dict(), folder / "classifier.safetensors")
    return folder / "classifier.safetensors"


class Stub(DigitClassifier):
    """Reads the digit from the brightness of the first pixel: value 10·d + s means digit d with confidence s
    / 9."""

    def probabilities(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        value = frames[..., 0, 0, 0].astype(int)
        sure = (value % 10) / 9
        out = np.repeat(((1 - sure) / 9)[..., None], 10, axis=-1)
        np.put_along_axis(out, (value // 10)[..., None], sure[..., None], axis=-1)
        return out


def test_reading_counts_sure_frames_of_the_majority_digit(classifier: DigitClassifier) -> None:
    stub = Stub(classifier.network, 1.0)
    values = np.array([[39, 39, 38, 59, 35], [79, 79, 79, 79, 79]], dtype=np.uint8)
    videos = np.zeros((2, 5, 4, 4, 3), dtype=np.uint8) + values[:, :, None, None, None]
    reading = read(stub, videos, np.array([3, 1]))
    assert reading.constant == pytest.approx(8 / 10)
    assert reading.readable == pytest.approx(9 / 10)
    assert reading.as_asked == 0.5 and read(stub, videos, None).as_asked is None


def test_centroid_and_position_error() -> None:
    frames = np.zeros((2, 10, 12, 3), dtype=np.uint8)
    frames[0, 3:5, 6:8] = 200
    frames[0, 9, 0] = 10
    assert np.allclose(centroids(frames)[0], (6.5, 3.5)) and np.isnan(centroids(frames)[1]).all()
    moved = np.roll(frames, (3, 4), axis=(1, 2))
    error = position_errors(moved, frames)
    assert error[0] == pytest.approx(5.0) and error[1] == pytest.approx(np.hypot(10, 12))
    with pytest.raises(TensorError):
        position_errors(frames[:1], frames)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    vae = TiTok(
        TiTokConfig(
            image_size=16,
            patch_size=4,
            encoder_width=8,
            encoder_layers=1,
            encoder_heads=1,
            decoder_width=8,
            decoder_layers=1,
            decoder_heads=1,
            num_latent_tokens=4,
            codebook_logits=8,
            quantized_channels=8,
            hidden_channels=4,
            channel_multipliers=(1, 1, 1),
            res_blocks=1,
            norm_groups=4,
        )  # fmt: skip
    )
    model = ARDiffusionTransformer(
        ARDiffusionConfig(
            num_frames=4,
            tokens_per_frame=4,
            channels=4,
            width=16,
            depth=1,
            heads=2,
            context_tokens=2,
            context_dim=4,
            num_classes=10,
        )
    )
    return Pipeline(model, vae, NoiseSchedule.sqrt_linear())


def test_report_has_baselines_and_every_lag(
    pipeline: Pipeline, classifier: DigitClassifier, tmp_path: Path
) -> None:
    report = evaluate(
        pipeline,
        classifier,
        DIGITS,
        lags=(0, 4),
        clips=3,
        continuations=2,
        frames=6,
        given=2,
        predicted=3,
        steps=4,
        progress=False,
    )
    names = [row.name for row in report.rows]
    assert names == ["real clips", "reconstructions", "last given frame held", "lag 0", "lag 4"]
    real, rebuilt, held, together, slow = report.rows
    assert (
        set(real.position_error) == {0.0}
        and real.reading.constant > 0.5
        and real.reading.as_asked is not None
    )
    assert held.position_error[-1] > held.position_error[0] > 0 and rebuilt.position_error[0] > 0
    assert (together.frames, len(together.position_error)) == (4, 2) and (
        slow.frames,
        len(slow.position_error),
    ) == (6, 3)
    report.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"][4]["name"] == "lag 4"
    assert (tmp_path / "evaluation.md").read_text().count("\n| ") == 6
    with pytest.raises(ConfigError, match="given"):
        evaluate(pipeline, classifier, DIGITS, given=4)
