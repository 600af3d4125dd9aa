# SPDX-License-Identifier: Apache-2.0
"""Training of a steered Wan transformer: its loss, its data, resuming, and configs that cannot work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_film

from ardiff_engine.conditions.captions import CaptionEncoder
from ardiff_engine.data import stored_shapes
from ardiff_engine.data.moving_shapes import MovingShapes
from ardiff_engine.data.steered_clips import SteeredShapes, keys_held
from ardiff_engine.data.stored_shapes import StoredShapes
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError, MediaError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.layers import dense_attention
from ardiff_engine.training import read_config, run_train, run_train_vae
from ardiff_engine.training.wan_trainer import STORED_FILE, Steering, WanTrainConfig, WanTrainer
from ardiff_engine.weights import load_model, save_model

TOML = """
network = "wan"
vae = "{folder}/vae"
shift = 3.0
[run]
output = "{folder}/run"
steps = 4
batch = 3
log_every = 1
validate_every = 4
validation_clips = 3
checkpoint_every = 2
[data]
source = "moving_shapes"
num_frames = 4
[data.shapes]
canvas = 32
min_radius = 4.0
max_radius = 6.0
[model]
width = 32
depth = 2
heads = 2
mlp_width = 48
channels = 4
out_channels = 4
text_dim = 16
text_tokens = 64
frequency_dim = 16
actions = 4
[text]
width = 16
[optimizer]
lr = 1e-2
[loss]
prediction = "flow"
block = 2
teacher_forcing = 0.5
history_levels = [0, 50]
[ema]
decay = 0.9
[log]
gemm_share = false
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(FrameVAE(FrameVAEConfig(image_size=32, channels=4, width=8)).eval(), tmp_path / "vae")
    file = tmp_path / "wan.toml"
    file.write_text(TOML.format(folder=tmp_path))
    return file


def test_training_resumes_bit_for_bit_and_leaves_a_folder(config: Path, tmp_path: Path) -> None:
    folder, parts = run_train(config), tmp_path / "parts"
    output = f"run.output={json.dumps(str(parts))}"
    run_train(config, [output, "run.steps=2"])
    run_train(config, [output], resume=True)
    for name, kind in (("transformer", WanTransformer), ("text_encoder", CaptionEncoder), ("vae", FrameVAE)):
        once, twice = load_model(folder / name), load_model(parts / name)
        assert isinstance(once, kind)
        assert all(torch.equal(a, twice.state_dict()[key]) for key, a in once.state_dict().items())
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert {"teacher_loss", "diffusion_loss", "validation_loss"} <= set().union(*lines)
    assert json.loads((folder / "training_config.json").read_text())["network"] == "wan"


@pytest.mark.parametrize("student", [False, True])
def test_a_resumed_run_needs_not_what_it_began_with(config: Path, tmp_path: Path, student: bool) -> None:
    few = ["run.steps=1", "run.checkpoint_every=1", "run.validate_every=0"]
    for name in ("first", "teacher")[: 1 + student]:
        run_train(config, [*few, f"run.output={json.dumps(str(tmp_path / name))}"])
    changes = [*few, f"init={json.dumps(str(tmp_path / 'first'))}"]
    if student:
        changes += [
            f"distillation.teacher={json.dumps(str(tmp_path / 'teacher'))}",
            "loss.objective=consistency",
        ]
    outputs = [f"run.output={json.dumps(str(tmp_path / name))}" for name in ("whole", "parts")]
    whole = run_train(config, [*changes, outputs[0], "run.steps=2"])
    run_train(config, [*changes, outputs[1]])
    (tmp_path / "first").rename(tmp_path / "gone")
    parts = run_train(config, [*changes, outputs[1], "run.steps=2"], resume=True)
    for name in ("transformer", "text_encoder"):
        once, twice = (load_model(folder / name).state_dict() for folder in (whole, parts))
        assert all(torch.equal(value, twice[key]) for key, value in once.items())
    with pytest.raises(ConfigError, match="first"):
        run_train(config, [*changes, f"run.output={json.dumps(str(tmp_path / 'new'))}"])


def test_the_loss_is_that_of_the_flow_from_clean_blocks(config: Path) -> None:
    trainer = WanTrainer(
        read_config(WanTrainConfig, config, ["loss.teacher_forcing=1.0", "loss.history_levels=[0, 0]"])
    )
    torch.nn.init.normal_(trainer.model.head.head.weight, std=0.2)
    clips = trainer.clips(trainer.source, [4, 5, 9], 0, 0.0)
    loss = trainer.recipe.phases[0].loss(clips)["teacher_loss"]
    levels = trainer.denoising.independent_levels(clips)
    assert (levels[:, ::2] == levels[:, 1::2]).all()
    noisy, t, target = trainer.denoising.noised(clips, levels)
    sigma = (t / 1000)[:, :, None, None, None]
    noise = (noisy - (1 - sigma) * clips.frames) / sigma
    assert torch.allclose(target, (noise - clips.frames).to(target.dtype), atol=2e-3)
    history, history_t = trainer.denoising.history(clips)
    assert torch.equal(history, clips.frames) and not history_t.any()
    out = trainer.model.forward_clip(
        noisy,
        t.float(),
        clips.condition.text,
        2,
        history=history,
        history_t=history_t.float(),
        actions=clips.condition.actions,
    )
    assert torch.allclose(loss, (out - target).square().flatten(1).mean(1), atol=1e-5)


def test_everything_learns_the_text_encoder_too(config: Path) -> None:
    trainer = WanTrainer(read_config(WanTrainConfig, config))
    before = {name: value.clone() for name, value in trainer.trained.named_parameters()}
    for step in range(3):
        trainer.step(step)
    still = [name for name, value in trainer.trained.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_a_share_of_clips_has_no_caption(config: Path) -> None:
    trainer = WanTrainer(read_config(WanTrainConfig, config))
    clips = trainer.clips(trainer.source, range(40), 0, 0.4)
    silent = (clips.condition.text == 0).flatten(1).all(1).float().mean()
    assert 0.2 < silent < 0.6
    chosen = clips.chosen([3, 1])
    assert isinstance(chosen.condition, Steering)
    assert torch.equal(chosen.condition.actions, clips.condition.actions[[3, 1]])


def test_clips_have_their_captions_and_keys() -> None:
    torch.manual_seed(0)
    vae = FrameVAE(FrameVAEConfig(channels=4, width=8)).eval()
    shapes = MovingShapes(steered=1.0, seed=2)
    made = SteeredShapes(shapes, vae, 8).clips(range(20))
    assert made.latents.shape == (20, 8, 4, 8, 8) and made.actions.shape == (20, 8, 4)
    assert set(np.unique(made.actions.sum(-1))) == {0.0, 1.0}
    first = SteeredShapes(shapes, vae, 8).held_out().clips([3])
    assert not torch.equal(first.latents[0], made.latents[3])


def test_clips_that_are_encoded_once_are_those_of_the_world(config: Path, tmp_path: Path) -> None:
    settings = [
        *("data.clips=6", "data.clip_frames=16", "data.shapes.steered=1.0", 'run.precision="bfloat16"'),
        *("data.beginnings=0.5", 'loss.objective="own_history"'),
    ]
    trainer = WanTrainer(read_config(WanTrainConfig, config, settings))
    assert isinstance(trainer.source, StoredShapes)
    made, file = trainer.source.clips(range(40)), tmp_path / "vae" / STORED_FILE
    drawn = SteeredShapes(trainer.config.data.shapes, trainer.vae, 16).drawn(range(6))
    found = set()
    assert 0.3 < float(made.begins.float().mean()) < 0.8
    for latents, caption, actions, begins in zip(
        made.latents, made.captions, made.actions, made.begins, strict=True
    ):
        for row, clip in enumerate(drawn):
            for start in range(13):
                held = keys_held(torch.from_numpy(clip.actions[start : start + 4]))
                own = trainer.source.source.encoded([clip])[0, start : start + 4]
                same = torch.equal(held, actions) and torch.allclose(own, latents, atol=0.05)
                if clip.scene.caption == caption and same and begins == (start == 0):
                    found.add((row, start))
                    break
    assert len(found) > 12, "windows begin at all places"
    written = file.stat().st_mtime_ns
    again = WanTrainer(read_config(WanTrainConfig, config, settings)).source.clips(range(40))
    assert torch.equal(again.latents, made.latents) and file.stat().st_mtime_ns == written
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    mended = WanTrainer(read_config(WanTrainConfig, config, settings)).source.clips(range(40))
    assert torch.equal(mended.latents, made.latents) and mended.captions == made.captions


def test_a_file_that_cannot_be_written_is_told_before_clips_are_encoded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_shapes, "_encode", lambda *_: pytest.fail("encoded in vain"))
    os.mkfifo(tmp_path / "vae" / STORED_FILE)
    with pytest.raises(CheckpointError, match="writing"):
        WanTrainer(read_config(WanTrainConfig, config, ["data.clips=6", "data.clip_frames=16"]))


@pytest.mark.parametrize("held_out", [0, 1])
def test_what_no_step_could_use_is_told_before_a_folder_is_made(
    config: Path, tmp_path: Path, held_out: int
) -> None:
    (tmp_path / "videos").mkdir()
    for name, frames in (("a", 9 * held_out or 3), ("b", 3)):
        write_film(tmp_path / "videos" / f"{name}.mp4", np.zeros((frames, 16, 16, 3), np.uint8))
    videos = ['data.source="videos"', f"data.path={json.dumps(str(tmp_path / 'videos'))}"]
    with pytest.raises(MediaError, match="held-out" if held_out else "usable"):
        run_train(config, [*videos, f"data.held_out={max(1, held_out)}"])
    with pytest.raises(ConfigError, match=r"run\.batch"):
        run_train(config, ["run.batch=1000000000"])
    assert not (tmp_path / "run").exists()


def test_muon_moves_the_weights_of_linear_layers_and_resumes(config: Path, tmp_path: Path) -> None:
    changes = ['optimizer.kind="muon"', "optimizer.weight_decay=0.0", "run.steps=4"]
    trainer = WanTrainer(read_config(WanTrainConfig, config, changes))
    before = {name: value.detach().clone() for name, value in trainer.trained.named_parameters()}
    trainer.step(0)
    after = dict(trainer.trained.named_parameters())
    name = "transformer.head.head.weight"
    step = (after[name] - before[name]).detach()
    # The nearest matrix with equal singular values, at the length of AdamW's steps.
    singular = torch.linalg.svdvals(step)
    assert singular.max() < 2 * singular.min() and 0.1 < step.std() / trainer.config.optimizer.lr < 0.4
    moments = trainer.optimizer.tensors()
    assert f"{name}/momentum_buffer" in moments and f"{name}/exp_avg" not in moments
    assert "text.bytes.weight/exp_avg" in moments and "transformer.head.head.bias/exp_avg" in moments
    folder, parts = run_train(config, changes), tmp_path / "parts"
    output = f"run.output={json.dumps(str(parts))}"
    run_train(config, [*changes, output, "run.steps=2"])
    run_train(config, [*changes, output], resume=True)
    once, twice = (load_model(place / "transformer").state_dict() for place in (folder, parts))
    assert all(torch.equal(value, twice[key]) for key, value in once.items())


def test_attention_keeps_its_precision_under_autocast() -> None:
    q, k, v = (torch.randn(2, 7, 3, 8, generator=torch.manual_seed(n)) for n in range(3))
    exact = dense_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_attention(q, k, v), exact)


def test_only_moving_shapes_are_encoded_once(config: Path) -> None:
    videos = ['data.source="videos"', 'data.path="videos"', "data.clips=4"]
    with pytest.raises(ConfigError, match="clips"):
        read_config(WanTrainConfig, config, videos)


def test_where_nothing_is_said_windows_begin_as_their_caption_tells(config: Path) -> None:
    stored = ["data.clips=6", "data.clip_frames=16"]
    source = WanTrainer(read_config(WanTrainConfig, config, stored)).source
    assert source.clips(range(40)).begins.all()
    for changes in (stored, ['loss.objective="own_history"']):
        with pytest.raises(ConfigError, match="beginnings"):
            read_config(WanTrainConfig, config, [*changes, "data.beginnings=0.5"])


def test_a_run_of_few_levels_is_validated_at_them(config: Path) -> None:
    listed = ["loss.level_list=[999, 499]", "run.steps=1", "run.validate_every=1"]
    trainer = WanTrainer(read_config(WanTrainConfig, config, listed))
    found = dict(trainer.validate())
    assert set(found) == {"loss", "loss_at_499", "loss_at_999"}
    assert found["loss"] == pytest.approx((found["loss_at_499"] + found["loss_at_999"]) / 2)


@pytest.mark.parametrize(
    "override",
    [
        'loss.prediction="x0"',
        'data.source="moving_digits"',
        "model.text_dim=8",
        "loss.level_list=[1000]",
        "loss.history_levels=[1000, 1200]",
        "model.actions=3",
        "model.channels=5",
        "data.num_frames=5",
        "data.shapes.canvas=64",
        "model.width=33",
        'vae="/nowhere"',
    ],
)
def test_configs_that_cannot_work_are_refused_before_anything_is_written(
    config: Path, tmp_path: Path, override: str
) -> None:
    with pytest.raises(ArdiffError):
        run_train(config, [override])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["vae", "init", "distillation.teacher"])
def test_an_earlier_run_that_is_not_there_is_named(config: Path, tmp_path: Path, key: str) -> None:
    """`ardiff train small-videos/2_train.toml --dry-run` before stage 1 asked for "a .safetensors file"."""
    with pytest.raises(ConfigError, match=rf"^{key}: got '/nowhere'.* first"):
        run_train(config, [f'{key}="/nowhere"'])
    assert not (tmp_path / "run").exists()


def test_kinds_of_networks_and_autoencoders_are_known(config: Path, tmp_path: Path) -> None:
    """Any name that an override gave was taken for "wan"; by one in the file nothing was said of it."""
    for changes in (["network=wann"], []):
        with pytest.raises(ConfigError, match="network.*'wann'.*'wan'"):
            run_train(config, changes)
        config.write_text(config.read_text().replace('"wan"', '"wann"'))
    (tmp_path / "vae.toml").write_text(f'autoencoder = "vae"\n[run]\noutput = "{tmp_path}/run"\nsteps = 1\n')
    with pytest.raises(ConfigError, match="autoencoder.*'vae'.*'frame_vae'"):
        run_train_vae(tmp_path / "vae.toml")


def test_an_autoencoder_may_be_named_by_its_run(config: Path, tmp_path: Path) -> None:
    trainer = WanTrainer(read_config(WanTrainConfig, config, [f"vae={json.dumps(str(tmp_path))}"]))
    assert trainer.vae.config.channels == 4


def test_another_autoencoder_is_refused(config: Path, tmp_path: Path) -> None:
    save_model(CaptionEncoder(), tmp_path / "vae")
    with pytest.raises(ConfigError, match="frame_vae"):
        run_train(config)
