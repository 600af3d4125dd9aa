# SPDX-License-Identifier: Apache-2.0
"""Stage 2: learns, exports a pipeline folder, survives SIGKILL and SIGTERM bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.small_training import assert_same_weights, load, write_config
from safetensors.torch import load_file

from ardiff_engine.errors import CheckpointError, ConfigError, DataError, NumericalError, Stopped
from ardiff_engine.settings import build
from ardiff_engine.training import loop
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.checkpoint import checkpoints
from ardiff_engine.training.config import DiffusionLossConfig, TrainConfig
from ardiff_engine.training.log import read_log
from ardiff_engine.training.loss_curve import draw_loss_curve
from ardiff_engine.training.read_config import read_config, to_dict
from ardiff_engine.training.timesteps import KNOWN_LEVELS, training_levels
from ardiff_engine.training.trainer import Trainer, train
from ardiff_engine.weights import load_model

FLOAT64 = ("run.precision=float64",)


def test_learns_and_trains_its_context(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path, steps=60)))
    before = trainer.model.context_embedding.detach().clone()
    losses = [trainer.step(step)["loss"] for step in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert not torch.equal(trainer.model.context_embedding, before)
    assert "context_embedding/exp_avg" in trainer.optimizer.tensors()


def test_learns_on_groups_of_tokens(tmp_path: Path) -> None:
    changes = ["model.tokens_per_frame=2", "model.channels=8"]
    trainer = Trainer(read_config(TrainConfig, write_config(tmp_path, steps=60), changes))
    losses = [trainer.step(step)["loss"] for step in range(60)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_loss_is_the_stated_mean_square(tmp_path: Path, prediction: str) -> None:
    config = load(write_config(tmp_path))
    config = build(
        TrainConfig,
        json.loads(json.dumps(_plain(config, {"prediction": prediction, "null_probability": 0.0}))),
        "",
    )
    trainer = Trainer(config)
    samples = range(6, 9)
    clips = trainer.clips(trainer.source, samples, 5, 0.0)
    (got,) = trainer.recipe.phases[0].loss(clips).values()
    x0, classes = trainer.source.latents(samples)
    t = training_levels(samples, 4, 40, config.loss, 5)
    from ardiff_engine.diffusion.noise import noise_keys
    from ardiff_engine.ops import philox_normal
    from ardiff_engine.purposes import Purpose

    keys = noise_keys(5, [s for s in samples for _ in range(4)], list(range(4)) * 3, Purpose.TRAIN, 0)
    eps = philox_normal(keys, 16).reshape(x0.shape)
    signal_, sigma = (
        value.float()[..., None, None] for value in (trainer.schedule.signal(t), trainer.schedule.sigma(t))
    )
    target = {"x0": x0, "eps": eps, "v": signal_ * eps - sigma * x0}[prediction]
    output = trainer.model.forward_clip(signal_ * x0 + sigma * eps, t, trainer.model.context(classes))
    assert torch.allclose(got, (output - target).square().flatten(1).mean(1), rtol=1e-5)


def _plain(config: TrainConfig, loss: dict[str, object]) -> dict[str, object]:
    from ardiff_engine.training.read_config import to_dict

    def drop(value: object) -> object:
        return {k: drop(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    values = drop(to_dict(config))
    assert isinstance(values, dict)
    return values | {"loss": values["loss"] | loss}


def test_pipeline_folder_log_and_curve(tmp_path: Path) -> None:
    folder = train(load(write_config(tmp_path)))
    model = load_model(folder / "transformer")
    ema = load_file(folder / "checkpoints" / "step-00000012" / "ema.safetensors")
    assert all(torch.equal(value, ema[name]) for name, value in model.named_parameters())
    assert json.loads((folder / "scheduler.json").read_text())["prediction"] == "x0"
    log = read_log(folder / "training_log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 13))
    assert [entry["step"] for entry in log if "validation_loss" in entry] == [4, 8, 12]
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(checkpoints(folder / "checkpoints")) == 2


def test_a_signal_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path, steps=2)))

    def step(index: int) -> Averages:
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return Averages()

    trainer.loop.run(step)
    assert trainer.loop.finished == 2


def test_the_library_raises_what_is_no_error_of_the_package(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path, steps=6)))
    plain = trainer.step

    def step(index: int) -> dict[str, float]:
        if index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(index)

    trainer.step = step  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped at step 4 of 6") as stopped:
        trainer.train()
    assert stopped.value.signal == signal.SIGINT and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "run" / "transformer" / "model.safetensors").exists()


def test_more_steps_done_than_asked_for(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=4)
    train(load(config))
    with pytest.raises(ConfigError, match="run.steps"):
        train(read_config(TrainConfig, config, ["run.steps=3"]), resume=True)


def test_a_forged_step_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    constant = "optimizer.schedule=constant"
    whole = train(read_config(TrainConfig, write_config(tmp_path, "whole", steps=8), [constant]))
    config = write_config(tmp_path, "forged", steps=7)
    train(read_config(TrainConfig, config, [constant]))
    newest = checkpoints(tmp_path / "forged" / "checkpoints")[-1]
    text = (newest / "state.json").read_text()
    (newest / "state.json").write_text(text.replace('"step": 7', '"step": 97'))
    again = train(read_config(TrainConfig, config, ["run.steps=8", constant]), resume=True)
    assert_same_weights(whole, again)
    assert "step-00000007" in caplog.text


def test_a_used_folder_is_not_overwritten_and_settings_may_not_change(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=4)
    train(load(config))
    with pytest.raises(ConfigError, match="resume"):
        train(load(config))
    with pytest.raises(CheckpointError, match="optimizer"):
        train(read_config(TrainConfig, config, ["optimizer.lr=0.5"]), resume=True)
    folder = train(read_config(TrainConfig, config, ["run.steps=6"]), resume=True)
    assert checkpoints(folder / "checkpoints")[-1].name == "step-00000006"


def test_a_resumed_run_draws_no_clip_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sample ids follow from seed and clips per step: with others, step 4 would draw those of step 2."""
    config = write_config(tmp_path, steps=4)
    train(load(config))
    for change in ("run.batch=1", "run.accumulate=1", "run.seed=7"):
        with pytest.raises(CheckpointError, match=change.split("=")[0]):
            train(read_config(TrainConfig, config, ["run.steps=6", change]), resume=True)
    assert "schedule over" not in caplog.text
    train(read_config(TrainConfig, config, ["run.steps=6", "run.batch=1", "run.accumulate=4"]), resume=True)
    assert "schedule over 6 steps" in caplog.text


def test_only_weights_of_layers_decay(tmp_path: Path) -> None:
    adam = Trainer(load(write_config(tmp_path))).optimizer
    names = {id(parameter): name for name, parameter in adam.parameters.items()}
    decayed = {names[id(p)] for p in adam.adam.param_groups[0]["params"]}
    assert "blocks.0.attn.qkv.weight" in decayed and "context_embedding" not in decayed
    assert all(name.endswith("weight") for name in decayed)


def test_a_step_may_be_split_into_micro_batches(tmp_path: Path) -> None:
    """Teacher forcing was chosen per micro-batch: 4 x 2 clips were other steps than 8."""
    weights = []
    for batch, accumulate in ((8, 1), (4, 2), (2, 4)):
        changes = [f"run.batch={batch}", f"run.accumulate={accumulate}", "loss.teacher_forcing=0.5"]
        trainer = Trainer(read_config(TrainConfig, write_config(tmp_path), [*changes, *FLOAT64]))
        losses = [trainer.step(step) for step in range(4)]
        assert losses[0].keys() >= {"loss", "teacher_loss", "diffusion_loss"}
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for other in weights[1:]:
        assert float((other - weights[0]).norm() / weights[0].norm()) < 1e-12


def test_the_log_holds_means_since_its_last_line(tmp_path: Path) -> None:
    changes = ["run.validate_every=0", "loss.teacher_forcing=0.5"]
    single, means = (
        read_log(
            train(read_config(TrainConfig, write_config(tmp_path, name, 8), [*changes, f"run.log_every={n}"]))
            / "training_log.jsonl"
        )
        for name, n in (("single", 1), ("means", 4))
    )
    assert [entry["step"] for entry in means] == [4, 8]
    for entry in means:
        own = [each for each in single if entry["step"] - 4 < each["step"] <= entry["step"]]
        for name in ("loss", "teacher_loss", "diffusion_loss", "gradient_norm"):
            assert entry[name] == pytest.approx(sum(each[name] for each in own) / 4, abs=2e-6), name
        assert entry["lr"] == own[-1]["lr"]


def test_a_mean_goes_on_after_a_resume(tmp_path: Path) -> None:
    whole = train(read_config(TrainConfig, write_config(tmp_path, "whole", 8), ["run.log_every=8"]))
    config = write_config(tmp_path, "parts", 8)
    trainer = Trainer(read_config(TrainConfig, config, ["run.log_every=8"]))
    plain = trainer.step

    def step(index: int) -> dict[str, float]:
        if index == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(index)

    trainer.step = step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.train()
    parts = train(read_config(TrainConfig, config, ["run.log_every=8"]), resume=True)
    last = [read_log(folder / "training_log.jsonl")[-2:] for folder in (whole, parts)]
    assert [entry.get("loss") for entry in last[0]] == [entry.get("loss") for entry in last[1]]


@pytest.mark.parametrize("change, limit", [("run.recompute=true", 0.0), ("run.precision=bfloat16", 2e-2)])
def test_gradients_of_other_ways_to_compute(tmp_path: Path, change: str, limit: float) -> None:
    def gradients(*changes: str) -> torch.Tensor:
        trainer = Trainer(read_config(TrainConfig, write_config(tmp_path), changes))
        clips = trainer.clips(trainer.source, range(4), 0, 0.3)
        for parameter in trainer.model.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(3))
        trainer.recipe.phases[0].loss(clips)["diffusion_loss"].sum().backward()  # type: ignore[call-overload]
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    plain, other = gradients(), gradients(change)
    assert float((plain - other).norm() / plain.norm()) <= limit
    assert limit == 0 or not torch.equal(plain, other)


def test_validation_does_not_depend_on_rule_or_batch(tmp_path: Path) -> None:
    def validation(*changes: str) -> dict[str, float]:
        return dict(
            Trainer(read_config(TrainConfig, write_config(tmp_path), [*changes, *FLOAT64])).validate()
        )

    expected = validation("run.validation_clips=5")
    for changes in (["run.batch=5"], ["loss.timesteps=iid"], ["loss.null_probability=1.0"]):
        assert validation("run.validation_clips=5", *changes) == pytest.approx(expected, rel=1e-12), changes
    levels = [value for name, value in expected.items() if name.startswith("loss_at_")]
    assert len(levels) == 5 and expected["loss"] == pytest.approx(sum(levels) / 5)


def test_damaged_checkpoints_stop_a_resumed_run_and_a_new_one(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, steps=2))
    folder = train(config)
    for path in checkpoints(folder / "checkpoints"):
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="start anew"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        train(config)


def test_a_model_with_classes_needs_data_with_classes(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, steps=2))
    for path in (tmp_path / "latents").iterdir():
        path.rename(path.with_name(path.name.replace("_classid", "-")))
    with pytest.raises(DataError, match="classid"):
        train(config)


def test_latents_that_do_not_fit_the_model(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=2)
    with pytest.raises(ConfigError, match="8 tokens x 4 channels.*4 x 4"):
        Trainer(read_config(TrainConfig, config, ["model.tokens_per_frame=8"]))


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: got '{device}'"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), [f"run.device={device}"]))


def test_a_checkpoint_from_before_a_setting_existed_is_resumed_at_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(config: TrainConfig) -> dict[str, object]:
        settings = to_dict(config)
        del settings["distillation"], settings["loss"]["teacher_forcing"]
        return settings

    config = write_config(tmp_path, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "to_dict", older)
        folder = train(load(config))
    with pytest.raises(CheckpointError, match="loss"):
        train(read_config(TrainConfig, config, ["run.steps=3", "loss.teacher_forcing=0.5"]), resume=True)
    train(read_config(TrainConfig, config, ["run.steps=3"]), resume=True)
    assert checkpoints(folder / "checkpoints")[-1].name == "step-00000003"


def test_resume_without_checkpoint_starts(tmp_path: Path) -> None:
    folder = train(load(write_config(tmp_path, steps=2)), resume=True)
    assert (folder / "transformer").exists()


@pytest.mark.parametrize(
    "changes",
    [
        ("model.mask=none", "loss.teacher_forcing=0.01"),
        ("model.mask=video_temporal_causal", "loss.teacher_forcing=1.0"),
        ("model.merge=reproduce", "loss.teacher_forcing=1.0"),
        ("model.mask=none", "loss.objective=told_clean"),
        ("model.mask=none", "loss.objective=chained"),
        ("model.mask=none", "loss.objective=own_history"),
        ("loss.block=5",),
    ],
)
def test_rules_that_do_not_fit_the_mask_or_the_clips(tmp_path: Path, changes: tuple[str, ...]) -> None:
    """Also where only some step far from the first would meet such a clip."""
    with pytest.raises(ConfigError, match="mask|block"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), changes))


def test_a_resumed_run_needs_not_what_it_began_with(tmp_path: Path) -> None:
    first = train(load(write_config(tmp_path, "first", 1)))
    path = write_config(tmp_path, "second", 2)
    changes = [f"init={json.dumps(str(first))}", "run.checkpoint_every=1"]
    train(read_config(TrainConfig, path, [*changes, "run.steps=1"]))
    first.rename(tmp_path / "gone")
    train(read_config(TrainConfig, path, changes), resume=True)
    with pytest.raises(ConfigError, match="first"):
        train(read_config(TrainConfig, write_config(tmp_path, "third"), changes))


def test_non_finite_gradients_stop_before_the_weights_are_touched(tmp_path: Path) -> None:
    trainer = Trainer(load(write_config(tmp_path)))
    with torch.no_grad():
        trainer.model.x_embedder.bias.fill_(float("nan"))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with pytest.raises(NumericalError, match="gradient"):
        trainer.step(0)
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if "bias" not in n)


def test_known_frames_share_one_small_timestep() -> None:
    loss = DiffusionLossConfig(known_probability=1.0)
    t = training_levels(range(400), 8, 1000, loss, seed=1)
    known = (t == t[:, :1]).sum(dim=1)
    assert (t[:, 0] < KNOWN_LEVELS).all() and set(known.tolist()) >= set(range(1, 8))
    assert (t[:, 1:] >= t[:, :-1]).all()
    none = training_levels(range(400), 8, 1000, DiffusionLossConfig(), seed=1)
    assert (none[:, 0] >= KNOWN_LEVELS).any()


def test_timesteps_of_a_sample_do_not_depend_on_its_batch() -> None:
    loss = DiffusionLossConfig(known_probability=0.5)
    together = training_levels(range(10, 20), 6, 1000, loss, seed=3)
    assert torch.equal(training_levels(range(14, 16), 6, 1000, loss, seed=3), together[4:6])


def test_curve_needs_two_points(tmp_path: Path) -> None:
    draw_loss_curve([{"step": 1, "loss": 1.0}], tmp_path / "curve.png")
    odd = [float("nan"), float("inf"), 0.0, -1.0, "x", None]
    draw_loss_curve([{"step": step, "loss": value} for step, value in enumerate(odd)], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    draw_loss_curve([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()
