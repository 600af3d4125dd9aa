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
from ardiff_engine.evaluation.digit_measures import (
    MEASURES,
    Values,
    measure_continuations,
    measure_videos,
)
from ardiff_engine.evaluation.digits import evaluate
from ardiff_engine.evaluation.intervals import mean_interval
from ardiff_engine.evaluation.motion import (
    bounces_agreed,
    centroids,
    position_errors,
    speeds,
    unsteadiness,
    velocity_errors,
)
from ardiff_engine.evaluation.spoiled import SPOILED
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
    values = measure_videos(stub, videos, np.array([3, 1]))
    assert values["constant"].tolist() == pytest.approx([3 / 5, 1])
    assert values["readable"].tolist() == pytest.approx([4 / 5, 1])
    assert values["as asked"].tolist() == [1, 0]
    assert values["fading"].tolist() == [1, 0]
    assert "as asked" not in measure_videos(stub, videos, None)


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
    assert names == ["real clips", "reconstructions", *SPOILED, "lag 0", "lag 4"]
    assert report.generated == ("lag 0", "lag 4")
    real, held = report.row("real clips"), report.row("frozen")
    assert not real.position_errors.any() and held.position_errors[:, -1].min() > 0
    assert (report.row("lag 0").frames, report.row("lag 0").position_errors.shape) == (4, (2, 2))
    assert (report.row("lag 4").frames, report.row("lag 4").position_errors.shape) == (6, (2, 3))
    with pytest.raises(ConfigError, match="lag 4"):
        report.row("lag 7")

    report.save(tmp_path)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["rows"][-1]["name"] == "lag 4" and len(saved["rows"][-1]["videos"]["readable"]) == 3
    held_errors = np.array(saved["rows"][2]["position_errors"])
    np.testing.assert_allclose(held_errors, held.position_errors, atol=1e-5)
    tables = (tmp_path / "evaluation.md").read_text()
    assert tables.count("\n| lag 4 |") == 3 and "\n| lag 4 less frozen |" in tables
    assert "| lag 4 less lag 0 |" in tables and "clips that both continue" in tables


@pytest.mark.parametrize(("option", "value"), [("given", 4), ("continuations", 0)])
def test_sizes_that_make_no_sense_are_refused(
    pipeline: Pipeline, classifier: DigitClassifier, option: str, value: int
) -> None:
    options = {"given": 2, option: value}
    with pytest.raises(ConfigError, match=option):
        evaluate(pipeline, classifier, DIGITS, **options)  # type: ignore[arg-type]


def test_every_measure_finds_the_spoiled_clips_that_it_names(classifier: DigitClassifier) -> None:
    """Their interval lies apart from that of the real clips. What a measure does not name it may miss: a
    frozen clip is as constant as a real one."""
    videos, _, labels, _ = replace(DIGITS, split="held_out").batch(np.arange(30), num_frames=40)

    def measured(frames: NDArray[np.uint8]) -> Values:
        after = measure_continuations(videos[:, 7], frames[:, 8:], videos[:, 8:])
        return {**measure_videos(classifier, frames, labels[:, 0]), **after}

    real = {name: mean_interval(values) for name, values in measured(videos).items()}
    found: dict[str, set[str]] = {name: set() for name in SPOILED}
    for spoiled, spoil in SPOILED.items():
        for name, values in measured(spoil(videos)).items():
            low, high = mean_interval(values).low, mean_interval(values).high
            if low > real[name].high or high < real[name].low:
                found[spoiled].add(name)
    promised = {name: {m for m, measure in MEASURES.items() if name in measure.finds} for name in SPOILED}
    assert all(promised.values())
    assert {name: promised[name] - found[name] for name in SPOILED} == {name: set() for name in SPOILED}
    assert not {"constant", "readable"} & (found["frozen"] | found["shuffled"])


def test_bounces_and_velocities_of_known_paths() -> None:
    def video(places: list[int]) -> NDArray[np.uint8]:
        frames = np.zeros((1, len(places), 8, 40, 3), dtype=np.uint8)
        for frame, x in enumerate(places):
            frames[0, frame, 2:6, x : x + 3] = 250
        return frames

    truth = video([10, 13, 16, 19, 16, 13, 10, 13])
    late = video([10, 13, 16, 19, 22, 19, 16, 13])
    straight = video([10, 13, 16, 19, 22, 25, 28, 31])
    assert bounces_agreed(truth, truth).tolist() == [1.0]
    assert bounces_agreed(late, truth).tolist() == [pytest.approx(2 / 3)]  # one of two, a frame late
    assert bounces_agreed(straight, truth).tolist() == [0.0]
    assert np.isnan(bounces_agreed(straight, straight)).all()
    assert velocity_errors(straight, truth).tolist() == [pytest.approx(18 / 7)]
    assert speeds(straight).tolist() == [3.0] and speeds(video([5] * 8)).tolist() == [0.0]
    assert unsteadiness(straight).tolist() == [0.0]
    assert np.isnan(speeds(np.zeros_like(truth))).all()


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
