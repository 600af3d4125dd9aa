# SPDX-License-Identifier: Apache-2.0
"""The measures are right on clips whose truth is known, and the report covers every lag."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.evaluation import __main__ as command
from ardiff_engine.evaluation import continuations, digit_classifier
from ardiff_engine.evaluation.continuations import continue_clips
from ardiff_engine.evaluation.digit_classifier import (
    DigitClassifier,
    keep,
    load_or_train,
    train_classifier,
)
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
    keep(classifier, DIGITS, folder / "classifier.safetensors")
    return folder / "classifier.safetensors"


@pytest.mark.parametrize("damage", ["cut", "other digits", "no settings"])
def test_a_classifier_that_does_not_fit_is_trained_again(
    classifier: DigitClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(digit_classifier, "STEPS", 2)
    path = tmp_path / "classifier.safetensors"
    keep(classifier, replace(DIGITS, digit_size=8) if damage == "other digits" else DIGITS, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "no settings":
        path.write_bytes(save(classifier.network.state_dict()))
    trained = load_or_train(DIGITS, path, progress=False)
    assert trained.held_out_accuracy < 0.6
    assert load_or_train(DIGITS, path, progress=False).held_out_accuracy == trained.held_out_accuracy


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
    assert (tmp_path / "evaluation.md").read_text().count("\n| ") == 12
    errors = "".join(f" {value:.2f} |" for value in slow.position_error)
    assert f"\n| lag 4 |{errors}  |" in report.markdown()
    with pytest.raises(ConfigError, match="given"):
        evaluate(pipeline, classifier, DIGITS, given=4)
    with pytest.raises(ConfigError, match="continuations"):
        evaluate(pipeline, classifier, DIGITS, given=2, continuations=0)


def test_continued_together_is_continued_alone(pipeline: Pipeline) -> None:
    starts = replace(DIGITS, split="held_out").batch(np.arange(3), num_frames=2)[0]
    options = {"num_frames": 5, "steps": 4, "lag": 2, "seed": 3}
    together = continue_clips(pipeline, starts, [None] * 3, **options)  # type: ignore[arg-type]
    assert together.shape == (3, 3, 16, 16, 3)
    alone = pipeline(
        video=starts[0], num_frames=5, num_inference_steps=4, lag=2, seed=3, progress=False
    ).frames[0]
    np.testing.assert_array_equal(together[0], alone[2:].numpy())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_continuations_are_guided_like_the_rest(
    pipeline: Pipeline, classifier: DigitClassifier, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    requests: list[Request] = []

    def recorded(**options: object) -> Request:
        requests.append(Request(**options))  # type: ignore[arg-type]
        return requests[-1]

    monkeypatch.setattr(continuations, "Request", recorded)
    sizes = {"clips": 2, "continuations": 2, "frames": 4, "given": 2, "predicted": 2, "steps": 2}
    evaluate(pipeline, classifier, DIGITS, lags=[1], guidance_scale=guidance, progress=False, **sizes)  # type: ignore[arg-type]
    labels = replace(DIGITS, split="held_out").batch(np.arange(2), num_frames=2)[2][:, 0].tolist()
    assert [request.guidance_scale for request in requests] == [guidance] * 2
    assert [request.condition for request in requests] == ([None] * 2 if guidance == 1 else labels)


@pytest.mark.parametrize(
    ("option", "value", "message"), [("--model", "none", "none"), ("--device", "foo", "foo")]
)
def test_mistakes_on_the_command_line(
    option: str,
    value: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([option, value]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
