# SPDX-License-Identifier: Apache-2.0
"""The template for own videos, from its files to a video: both stages as commands, with small numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_film

from ardiff_engine import cli
from ardiff_engine.errors import ConfigError
from ardiff_engine.media import open_video
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.play.worlds import Shapes, open_world
from ardiff_engine.training.log import read_log

CAPTIONS = ("a square moves right", "a square moves down")
SMALLER = ("run.steps=6", "run.batch=3", "run.threads=1", "run.log_every=1", "run.validate_every=6")
STAGE_1 = (*SMALLER, "run.validation_clips=2", "model.image_size=32", "model.width=16")
STAGE_2 = (
    *SMALLER,
    "run.validation_clips=2",
    "model.width=32",
    "model.depth=1",
    "model.heads=2",
    "model.mlp_width=32",
    "optimizer.warmup=0",
    "log.gemm_share=false",
    "log.samples_every=6",
    "log.samples=2",
    "log.sample_steps=2",
)


def changed(settings: Sequence[str]) -> list[str]:
    return [f"--set={setting}" for setting in settings]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which docs/training.md was followed; its commands ran with smaller numbers."""
    home = tmp_path_factory.mktemp("home")
    (home / "videos").mkdir()
    for number in range(4):
        frames = np.full((36, 40, 56, 3), 60 + 30 * number, np.uint8)
        for index, frame in enumerate(frames):
            along = slice(4 + index // 2, 18 + index // 2)
            frame[(slice(12, 26), along) if number % 2 == 0 else (along, slice(20, 34))] = (240, 200, 40)
        write_film(home / "videos" / f"{number}.mp4", frames, rate=24)
        (home / "videos" / f"{number}.txt").write_text(CAPTIONS[number % 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command in (
            ["train", "--template", "small-videos"],
            ["train-vae", "small-videos/1_vae.toml", *changed(STAGE_1)],
            ["train", "small-videos/2_train.toml", *changed(STAGE_2)],
        ):
            assert cli.main(command) == 0
    return home


def test_both_stages_leave_what_the_docs_name(home: Path) -> None:
    for stage, pictures, loss in (
        ("small_vae", "reconstructions", "validation_psnr"),
        ("small_videos", "samples", "validation_loss"),
    ):
        folder = home / "outputs" / stage
        assert [path.name for path in (folder / pictures).iterdir()] == ["step-00000006.png"]
        entries = read_log(folder / "training_log.jsonl")
        assert np.isfinite([entry["loss"] for entry in entries if "loss" in entry]).all()
        assert any(loss in entry for entry in entries)


def test_the_command_that_the_docs_name_makes_a_video_of_its_rate(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    play = ["play", "--model", "outputs/small_videos", "--prompt", CAPTIONS[0], "--seed", "1"]
    assert cli.main([*play, "--frames", "9", "--out", "made.mp4"]) == 0
    video = open_video(home / "made.mp4")
    assert (video.frames, video.height, video.width, video.fps) == (9, 128, 128, 8)
    best = [*play[:2], "outputs/small_videos/best", *play[3:5], "--size", "32x48", "--out", "wide.mp4"]
    assert cli.main([*best, "--frames", "3"]) == 0
    wide = open_video(home / "wide.mp4")
    assert (wide.frames, wide.height, wide.width) == (3, 128, 192)
    assert cli.main([*best, "--frames", "3", "--size", "30x40"]) == 2
    assert cli.main(["generate", *play[1:5], "--frames", "9", "--out", "other.mp4"]) == 2
    assert "ardiff play" in capsys.readouterr().err


def test_own_captions_are_offered_and_no_arrows(home: Path) -> None:
    world = open_world(str(home / "outputs/small_videos"), prompt=None, steps=1, seed=0, device="cpu")
    assert isinstance(world, Shapes)
    first = world.line
    assert first.startswith(CAPTIONS[0]) and "1-2 another" in first and "arrows" not in first
    for key in ("left", "3", "2"):
        world.press(key)
    assert world.line.startswith(CAPTIONS[1])
    next(iter(world.frames()))
    pipe = SteeredPipeline.from_pretrained(home / "outputs" / "small_videos")
    with pytest.raises(ConfigError, match="without keys"):
        pipe.stream(CAPTIONS[0], 3, action=lambda frame: 1)


def test_a_student_of_it_learns_on_its_own_videos(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll-outs of a network without keys."""
    monkeypatch.chdir(home)
    student = ("distillation.teacher=outputs/small_videos", "loss.objective=self_forcing", "run.steps=1",
        "loss.level_list=[999, 499]", "distillation.fake_updates=0", "run.output=outputs/student",
        "run.validate_every=0", "log.keep_best=false", "log.samples_every=0")  # fmt: skip
    assert cli.main(["train", "small-videos/2_train.toml", *changed((*STAGE_2, *student))]) == 0
    assert np.isfinite(read_log(home / "outputs/student/training_log.jsonl")[-1]["loss"])


@torch.no_grad()
def test_captions_and_the_history_count(home: Path) -> None:
    pipe = SteeredPipeline.from_pretrained(home / "outputs" / "small_videos")
    made = [
        torch.stack([frame.image for frame in pipe.stream(caption, 6, seed=1, steps=2)])
        for caption in (*CAPTIONS, CAPTIONS[0])
    ]
    assert made[0].shape == (6, 32, 32, 3) and made[0].float().std() > 0
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    model = pipe.transformer
    assert isinstance(model, WanTransformer)
    torch.manual_seed(0)
    noisy, history = torch.randn(2, 1, 6, 8, 4, 4)
    text, levels = pipe.text.encode([CAPTIONS[0]]), torch.full((1, 6), 500.0)
    before, after = (
        model.forward_clip(noisy, levels, text, 3, history=past, history_t=torch.zeros(1, 6))
        for past in (history, -history)
    )
    assert torch.equal(before[:, :3], after[:, :3]), "the first block has none"
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-4
