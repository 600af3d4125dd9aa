# SPDX-License-Identifier: Apache-2.0
"""Videos of several shapes: which bucket fits, steps of one shape, validation of all, runs in parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import start_together
from media_files import write_film
from safetensors.torch import load_file
from test_wan_trainer import TOML

from ardiff_engine.data.buckets import Bucket, alike, fitting
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import ConfigError, MediaError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.training import run_train, run_train_vae
from ardiff_engine.training.log import read_log
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.wan_trainer import WanTrainConfig, WanTrainer
from ardiff_engine.weights import save_model

SQUARE, WIDE, LONG = Bucket(32, 32, 4), Bucket(16, 32, 4), Bucket(16, 32, 6)
BUCKETS = (SQUARE, WIDE, LONG)
IN_TOML = "data.buckets=[[32, 32, 4], [16, 32, 4], [16, 32, 6]]"
# Height, width, frames of videos, and the bucket that fits them.
VIDEOS = {
    "a": (64, 64, 9, 0),
    "b": (40, 44, 4, 0),
    "c": (32, 64, 5, 1),
    "d": (32, 64, 8, 2),
    "e": (48, 48, 9, 0),
    "f": (64, 64, 6, 0),
    "g": (36, 64, 9, 2),
}


@pytest.mark.parametrize(
    ("height", "width", "frames", "expected"),
    [
        *VIDEOS.values(),
        (1080, 1920, 3, None),
        (1920, 1080, 100, 0),  # upright: the square crops it less
        (32, 64, 4, 1),
    ],
)
def test_the_bucket_that_crops_least_and_is_filled(
    height: int, width: int, frames: int, expected: int | None
) -> None:
    assert fitting(BUCKETS, height, width, frames) == expected


def test_of_equal_shapes_the_one_that_does_not_enlarge() -> None:
    sizes = (Bucket(48, 80, 4), Bucket(96, 160, 4))
    assert fitting(sizes, 48, 80, 9) == 0 and fitting(sizes, 720, 1200, 9) == 1
    assert fitting(sizes, 24, 40, 9) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "videos").mkdir()
    random = np.random.default_rng(0)
    for name, (height, width, frames, _) in VIDEOS.items():
        pixels = random.integers(0, 255, (1, height, width, 3), np.uint8).repeat(frames, 0)
        write_film(folder / "videos" / f"{name}.mp4", pixels)
        (folder / "videos" / f"{name}.txt").write_text(f"caption {name}")
    torch.manual_seed(0)
    save_model(FrameVAE(FrameVAEConfig(image_size=32, channels=4, width=8)).eval(), folder / "vae")
    (folder / "wan.toml").write_text(TOML.format(folder=folder))
    return folder


def changes(folder: Path, output: str, *more: str) -> list[str]:
    return [
        f"run.output={json.dumps(str(folder / output))}",
        'data.source="videos"',
        f"data.path={json.dumps(str(folder / 'videos'))}",
        "data.held_out=2",
        IN_TOML,
        "run.threads=1",
        *more,
    ]


def test_all_samples_of_a_step_have_one_shape_and_none_is_left_out(folder: Path) -> None:
    source = VideoFolder(folder / "videos", BUCKETS, 1, seed=3, step_clips=6)
    drawn = [source.bucket(sample) for sample in range(600)]
    steps = [set(drawn[first : first + 6]) for first in range(0, 600, 6)]
    assert all(len(step) == 1 for step in steps)
    # Of six videos four are of the first bucket.
    assert 45 < sum(step == {0} for step in steps) < 88 and {1} in steps and {2} in steps
    for number, bucket in enumerate(BUCKETS):
        sample = drawn.index(number)
        clips, files = source.clips_of_files(range(sample, sample + 3))
        assert clips.shape == (3, bucket.frames, 3, bucket.height, bucket.width)
        assert all(VIDEOS[path.stem][3] == number for path in files)
        again = VideoFolder(folder / "videos", BUCKETS, 1, seed=3, step_clips=6).clips([sample + 2])[0]
        assert torch.equal(again[0], clips[2])


def test_held_out_videos_come_in_turn_whatever_their_shape(folder: Path) -> None:
    source = VideoFolder(folder / "videos", BUCKETS, 2, seed=1, step_clips=6).held_out()
    batches = list(alike(source, range(6), 2))
    assert sorted(sample for batch in batches for sample in batch) == list(range(6))
    assert all(len({source.bucket(sample) for sample in batch}) == 1 for batch in batches)
    for first in (0, 2, 4):
        files = {source.clips_of_files([sample])[1][0].stem for sample in range(first, first + 2)}
        assert files == {"f", "g"}


def test_videos_that_are_too_short_for_all_are_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / "videos" / f"{name}.mp4").read_bytes())
    some = VideoFolder(tmp_path, (Bucket(32, 32, 9), Bucket(16, 32, 12)), 0)
    assert {some.bucket(sample) for sample in range(20)} == {0}
    assert all(path.stem == "a" for path in some.clips_of_files(range(20))[1])
    assert sum("skipped" in record.getMessage() for record in caplog.records) == 2
    with pytest.raises(MediaError, match="at least 10"):
        VideoFolder(tmp_path, (Bucket(32, 32, 10), Bucket(16, 32, 12)), 0).clips([0])


def test_a_run_of_several_shapes(folder: Path) -> None:
    """Resumed it is the same; the validation does not depend on the batch; the model makes videos."""
    settings = ["run.steps=6", "run.validation_clips=6", "log.samples_every=6", "log.samples=3"]
    whole = run_train(folder / "wan.toml", changes(folder, "whole", *settings))
    run_train(folder / "wan.toml", changes(folder, "parts", *settings, "run.steps=2"))
    parts = run_train(folder / "wan.toml", changes(folder, "parts", *settings), resume=True)
    one, two = (load_file(run / "transformer" / "model.safetensors") for run in (whole, parts))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert (whole / "samples" / "step-00000006.png").stat().st_size
    trainers = [
        WanTrainer(read_config(WanTrainConfig, folder / "wan.toml", changes(folder, "x", *settings, batch)))
        for batch in ("run.batch=3", "run.batch=2")
    ]
    source = trainers[0].source
    assert len({trainers[0].clips(source, [3 * n], 0, 0.0).frames.shape for n in range(12)}) == 3
    trainers[1].trained.load_state_dict(trainers[0].trained.state_dict())
    losses = [trainer.validate()["loss"] for trainer in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    pipe = SteeredPipeline.from_pretrained(whole)
    assert pipe.rhythm.frames == 6
    assert next(iter(pipe.stream("caption a", 4, steps=1, seed=0))).image.shape == (32, 32, 3)
    wide = next(iter(pipe.stream("caption a", 4, steps=1, seed=0, size=(16, 32))))
    assert wide.image.shape == (16, 32, 3)


def test_stage_1_sees_the_same_shapes(folder: Path) -> None:
    config = folder / "vae.toml"
    config.write_text(
        f'autoencoder = "frame_vae"\n[run]\noutput = "{folder}/stage1"\nsteps = 4\nbatch = 2\nlog_every = 1\n'
        f'validate_every = 4\nvalidation_clips = 3\n[data]\nsource = "videos"\npath = "{folder}/videos"\n'
        "held_out = 2\nbuckets = [[32, 32, 1], [16, 32, 1]]\n[model]\nimage_size = 32\nwidth = 8\n"
    )
    run_train_vae(config)
    assert any("validation_psnr" in entry for entry in read_log(folder / "stage1" / "training_log.jsonl"))
    with pytest.raises(ConfigError, match="multiple"):
        run_train_vae(config, ["data.buckets=[[32, 36, 1]]"])


@pytest.mark.parametrize(
    "wrong",
    [
        "data.buckets=[[32, 32]]",
        "data.buckets=[[32, 0, 4]]",
        "data.buckets=[[32, 40, 4]]",
        "data.buckets=[[32, 32, 5]]",
        "data.buckets=[4]",
        'data.source="moving_shapes"',
    ],
)
def test_buckets_that_cannot_be(folder: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="buckets"):
        WanTrainer(read_config(WanTrainConfig, folder / "wan.toml", changes(folder, "never", wrong)))
    assert not (folder / "never").exists()


RANK = "import json, sys\nfrom ardiff_engine.training import run_train\nrun_train(*json.loads(sys.argv[1]))"


@pytest.mark.slow
def test_two_processes_are_the_run_of_one(folder: Path) -> None:
    settings = ["run.precision=float64", "run.steps=5", "run.validation_clips=6", "loss.teacher_forcing=0.5"]
    alone = run_train(folder / "wan.toml", changes(folder, "alone", *settings, "run.batch=4"))
    asked = [str(folder / "wan.toml"), changes(folder, "together", *settings, "run.batch=2")]
    ends = start_together(2, [sys.executable, "-c", RANK, json.dumps(asked)])
    assert all(end.code == 0 for end in ends), ends
    logs = [read_log(run / "training_log.jsonl") for run in (alone, folder / "together")]
    for one, two in zip(*logs, strict=True):
        for name in {"loss", "teacher_loss", "validation_loss"} & one.keys():
            assert one[name] == pytest.approx(two[name], abs=2e-6), name
    a, b = (load_file(run / "transformer" / "model.safetensors") for run in (alone, folder / "together"))
    assert all(torch.allclose(a[name], b[name], rtol=1e-11, atol=1e-12) for name in a)
