# SPDX-License-Identifier: Apache-2.0
"""The comparison on moving digits: its gate, its pairing, its records, and that it goes on where it
stopped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ardiff_engine.cli import main as cli
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.engine import Request
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.evaluation import intervals, trained_digits
from ardiff_engine.evaluation.digit_arms import (
    Arm,
    ArmTrainer,
    Training,
    arm_config,
    refined_denoising,
)
from ardiff_engine.evaluation.digit_measures import stretches
from ardiff_engine.evaluation.digit_results import MAIN, Results
from ardiff_engine.evaluation.digit_world import DigitWorld, HeldOutDigits
from ardiff_engine.evaluation.trained_digits import (
    Protocol,
    check_measures,
    compare,
    continued,
)
from ardiff_engine.evaluation.worlds import GIVEN
from ardiff_engine.models import ARDiffusionTransformer
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.timesteps import KNOWN_LEVELS
from tools.evidence import BLOCK

SMALL = Training(steps=2, batch=2, clips=3, width=16, depth=1)
CLIPS = 24
WORLD = DigitWorld()
SHOWN = tuple(HeldOutDigits.measures)


@pytest.fixture(scope="module")
def held_out() -> HeldOutDigits:
    return HeldOutDigits(WORLD, CLIPS)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def results(better: float, noise: float = 1.0) -> Results:
    """Two arms, three seeds, 40 clips, lags 0 and 5: arm "a" is `better` px below the held frame, and 0.3
    above at lag 5; arm "b" is 0.1 px worse than "a" in every clip."""
    random = np.random.default_rng(0)
    held = random.normal(5, 1, 40)
    first = held - better + noise * random.normal(0, 1, (3, 40))
    runs = {
        name: {
            seed: {
                lag: {name: first[seed] + shift + (better + 0.3 if lag else 0) for name in SHOWN}
                for lag in (0, 5)
            }
            for seed in range(3)
        }
        for name, shift in (("a", 0.0), ("b", 0.1))
    }
    return Results({"steps": 1}, {"frozen": dict.fromkeys(SHOWN, held)}, runs)


def test_an_arm_counts_where_its_interval_is_below_the_held_frame() -> None:
    found = results(better=1.0)
    assert found.counts("a", 0) and not found.counts("a", 5)
    assert not results(better=0.01).counts("a", 0), "an interval with 0 in it shows nothing"
    assert found.advantage("a", 0).mean == pytest.approx(-1.0, abs=0.3)


@pytest.mark.usefixtures("few_resamples")
def test_differences_are_paired_and_shown_only_where_both_count() -> None:
    found = results(better=1.0)
    apart = found.difference("b", "a", 0)
    assert np.allclose([apart.low, apart.mean, apart.high], 0.1)
    shown = {table.head[0]: table for table in found.tables()}
    assert shown[f"{MAIN}, paired by clip and seed"].rows == [["a less b", "-0.10 [-0.10, -0.10]", ""]]
    assert "of 3 runs" in shown[f"{MAIN} less the held frame's"].rows[0][1]


@pytest.mark.usefixtures("few_resamples")
def test_results_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    found = results(better=1.0)
    found.runs["a"][0][0]["bounces"][3] = np.nan
    found.save(tmp_path / "a.json")
    again = Results.load(tmp_path / "a.json")
    assert again.markdown() == found.markdown() and again.protocol == found.protocol
    assert np.isnan(again.runs["a"][0][0]["bounces"][3])
    (tmp_path / "b.json").write_text('{"runs": [["a", 0]]}')
    with pytest.raises(CheckpointError):
        Results.load(tmp_path / "b.json")


def test_spoiled_clips_are_found_and_a_blind_measure_is_refused(held_out: HeldOutDigits) -> None:
    references = held_out.references()
    check_measures(references, held_out.measures)
    assert not references["real clips"][MAIN].any()
    blind = references | {"frozen": references["reconstructions"]}
    with pytest.raises(ConfigError, match="frozen ones differ"):
        check_measures(blind, held_out.measures)


def test_given_frames_are_those_before_the_true_ones(held_out: HeldOutDigits) -> None:
    rebuilt = WORLD.pixels(held_out.given)
    assert rebuilt.shape == (CLIPS, GIVEN, 32, 32, 3)
    apart = np.abs(rebuilt[:, -1].astype(float) - held_out.last).mean()
    assert apart < np.abs(rebuilt[:, 0].astype(float) - held_out.last).mean() / 2


def test_what_is_measured_is_kept_and_what_is_missing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Protocol((Arm("iid"), Arm("shared")), (0,), lags=(0,), clips=CLIPS, steps=2, training=SMALL)
    first = compare(both, tmp_path)
    assert first.values("iid x0", 0, MAIN, [0]).shape == (1, CLIPS)
    assert first.values("iid x0", 0, MAIN, [0]).tolist() != first.values("shared x0", 0, MAIN, [0]).tolist()
    lines = (tmp_path / "trained_digits.json").read_text().splitlines()
    assert sum(line.startswith('["') for line in lines) == 2

    # One more lag: the network that is there is asked, and is not trained on.
    weights = tmp_path / "iid-x0-0" / "transformer" / "model.safetensors"
    before = weights.read_bytes()
    found = compare(replace(both, arms=(Arm("iid"),), lags=(0, 2)), tmp_path)
    assert found.lags() == [0, 2] and weights.read_bytes() == before

    def never(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(trained_digits, "train_arm", never)
    again = compare(both, tmp_path)
    assert again.values("iid x0", 0, MAIN, [0]).tolist() == first.values("iid x0", 0, MAIN, [0]).tolist()
    with pytest.raises(ConfigError, match="another --output"):
        compare(replace(both, training=replace(SMALL, steps=3)), tmp_path)


@pytest.mark.usefixtures("few_resamples")
def test_windows_are_arms_of_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both windows each network is asked; what is made depends on how far it sees."""
    monkeypatch.setattr(trained_digits, "train_arm", seeing)
    monkeypatch.setattr(trained_digits, "check_measures", lambda *_: None)  # of so few clips
    both = Protocol((Arm("iid"),), (0,), (0,), 3, 2, SMALL, windows=(2, 4), frames=24)
    found = compare(both, tmp_path)
    assert list(found.runs) == ["iid x0, window 2", "iid x0, window 4"]
    assert found.stretches() == ["frames 1 to 8", "frames 9 to 16"]
    narrow, wide = (found.values(arm, 0, "frames 9 to 16", [0]) for arm in found.runs)
    assert not np.array_equal(narrow, wide)
    heads = [table.head[0] for table in found.tables()]
    assert f"{MAIN} by frame" in heads and "frames 9 to 16, paired by clip and seed" in heads
    pairs = next(table for table in found.tables() if table.head[0] == f"{MAIN}, paired by clip and seed")
    assert not found.counts("iid x0, window 2", 0) and pairs.rows[0][1], "windows of one network are compared"
    assert Results.load(tmp_path / "trained_digits_windows.json").markdown() == found.markdown()
    with pytest.raises(ConfigError, match="another --output"):
        compare(replace(both, frames=16), tmp_path)


def seeing(arm: Arm, seed: int, *_: object) -> ARDiffusionTransformer:
    """A network that was not trained, whose output depends on what it sees."""
    torch.manual_seed(seed)
    model = ARDiffusionTransformer(arm_config(arm, seed, SMALL, Path("unused"), WORLD.numbers).model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_drift_is_the_error_of_every_eight_frames() -> None:
    frames = np.zeros((1, 16, 32, 32, 3), np.uint8)
    frames[:, :, 10:14, 10:14] = 255
    late = frames.copy()
    late[:, 8:] = np.roll(frames[:, 8:], 3, axis=3)
    found = stretches(late, frames)
    assert {name: values.tolist() for name, values in found.items()} == {
        "frames 1 to 8": [0.0],
        "frames 9 to 16": [pytest.approx(3.0)],
    }


def test_a_refined_training_counts_new_frames_of_doubled_latents(tmp_path: Path) -> None:
    clips = Clips(range(4), torch.ones(4, 16, 1, 64), None, 0)
    settings = arm_config(Arm("fopp"), 0, replace(SMALL, refined=True), tmp_path, 64).loss
    assert settings.objective.endswith(":refined_denoising")
    black = Denoising(
        lambda noisy, *_: torch.zeros_like(noisy), NoiseSchedule.sqrt_linear(), replace(settings)
    )
    new = (black.levels(clips) >= KNOWN_LEVELS).double().mean(1)
    assert bool((new < 1).all()) and len(set(new.tolist())) > 1
    torch.testing.assert_close(refined_denoising(black, clips).double(), 4 * new)


def test_frames_are_given_and_shown_on_the_scale_of_the_autoencoder(
    held_out: HeldOutDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeats(_: object, __: object, ___: object, requests: list[Request]) -> list[Tensor]:
        return [torch.cat([request.prefix, request.prefix]) for request in requests]

    monkeypatch.setattr(trained_digits, "run_together", repeats)
    doubled = Protocol(training=replace(SMALL, refined=True))
    made = continued(seeing(Arm("iid"), 0), Arm("iid"), doubled, 0, held_out.given[:2])
    assert np.array_equal(made, WORLD.pixels(held_out.given[:2]))


def test_a_flow_learns_the_way_from_noise_to_data(tmp_path: Path) -> None:
    def targets(arm: Arm) -> tuple[Tensor, Tensor]:
        config = arm_config(arm, 0, SMALL, tmp_path / arm.prediction, WORLD.numbers)
        trainer = ArmTrainer(config, arm, WORLD, SMALL.clips, tmp_path / "latents.safetensors")
        clips = Clips([0], torch.zeros(1, 16, 1, 64), None, 0)
        noisy, _, target = trainer.denoising.noised(clips, torch.full((1, 16), 999))
        return noisy, target

    noisy, target = targets(Arm("iid", "flow"))
    torch.testing.assert_close(noisy, target)  # of black clips at the noisiest level all is noise
    assert not targets(Arm("iid", "x0"))[1].any()


@pytest.mark.usefixtures("few_resamples")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results(better=1.0).save(tmp_path / "a.json")
    assert trained_digits.main(["--of", str(tmp_path / "a.json")]) == 0
    assert "| a less b | -0.10 [-0.10, -0.10] |" in capsys.readouterr().out
    assert trained_digits.main(["--clips", "1", "--output", str(tmp_path)]) == 2
    assert trained_digits.main(["--solver-steps", "0", "--output", str(tmp_path)]) == 2


@pytest.mark.usefixtures("few_resamples")
def test_the_report_shows_a_line_for_every_arm(tmp_path: Path) -> None:
    results(better=1.0).save(tmp_path / "trained_digits.json")
    assert cli(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    chart = html[html.index("<svg") : html.index("</svg>")]
    assert [chart.count(f">{name}</text>") for name in ("a", "b", "the last given frame held")] == [1, 1, 1]
    assert "<td>-0.10 [-0.10, -0.10]</td>" in html and "--protocol rules" in html
    other = replace(results(better=1.0), protocol={"windows": [4, 8]})
    other.save(tmp_path / "trained_digits_windows.json")
    assert cli(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    html = (tmp_path / "r.html").read_text()
    assert html.count("<td>-0.10 [-0.10, -0.10]</td>") == 2 and "--protocol windows" in html
    (tmp_path / "trained_digits.json").write_text("{}")
    assert cli(["report", str(tmp_path), "--out", str(tmp_path / "s.html")]) == 2


def test_the_document_holds_what_the_records_say() -> None:
    """Words to the letter, numbers to their last digit: processors round the sums of an interval
    otherwise."""
    root = Path(__file__).parents[1]
    blocks = [found["made"].strip() for found in BLOCK.finditer((root / "docs" / "evidence.md").read_text())]
    for path in sorted((root / "benchmarks" / "results").glob("trained_digits_*.json")):
        tables = "\n\n".join(table.markdown() for table in Results.load(path).tables())
        words = NUMBER.split(tables)
        written = [block for block in blocks if NUMBER.split(block)[: len(words) - 1] == words[:-1]]
        assert len(written) == 1, f"{path.name}: {len(written)} blocks of the document have its words"
        found = numbers(written[0])[: len(words) - 1]
        assert numbers(tables) == pytest.approx(found, abs=0.0101), path.name


NUMBER = re.compile(r"[-+]?\d+\.\d+")


def numbers(line: str) -> list[float]:
    return [float(found) for found in NUMBER.findall(line)]
