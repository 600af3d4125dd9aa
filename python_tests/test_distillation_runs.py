# SPDX-License-Identifier: Apache-2.0
"""Distillation by `ardiff train`: from the folder of a run to a student, resumed bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.small_training import write_config
from test_wan_trainer import config  # noqa: F401

from ardiff_engine.errors import ConfigError
from ardiff_engine.training import run_train
from ardiff_engine.training.checkpoint import load_checkpoint
from ardiff_engine.training.config import TrainConfig
from ardiff_engine.training.log import read_log
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.trainer import Trainer
from ardiff_engine.training.wan_trainer import WanTrainConfig, WanTrainer
from ardiff_engine.weights import load_model

RECIPES = ["consistency", "ode_initialisation", "self_forcing", "adversarial_self_distillation"]
STUDENT = (
    "distillation.teacher_steps=4",
    "distillation.guidance_scale=2.0",
    "distillation.fake_updates=1",
    "loss.level_list=[999, 499]",
    "run.validate_every=0",
    "run.steps=2",
    "run.batch=2",
    "run.checkpoint_every=1",
    "optimizer.lr=1e-3",
)


def of_student(folder: Path, name: str, objective: str, *more: str) -> list[str]:
    return [
        *STUDENT,
        f"distillation.teacher={json.dumps(str(folder / 'run'))}",
        f"run.output={json.dumps(str(folder / name))}",
        f"loss.objective={objective}",
        *more,
    ]


@pytest.mark.parametrize("objective", RECIPES)
def test_a_wan_student_resumes_bit_for_bit(config: Path, tmp_path: Path, objective: str) -> None:  # noqa: F811
    teacher = run_train(config, ["run.steps=1", "run.validate_every=0"])
    whole = run_train(config, of_student(tmp_path, "whole", objective))
    run_train(config, of_student(tmp_path, "parts", objective, "run.steps=1"))
    run_train(config, of_student(tmp_path, "parts", objective), resume=True)
    last = [load_checkpoint(tmp_path / name / "checkpoints/step-00000002") for name in ("whole", "parts")]
    for name, tensors in last[0].tensors.items():
        for key, value in tensors.items():
            assert torch.equal(value, last[1].tensors[name][key]), (name, key)
    before, after = (load_model(folder / "transformer").state_dict() for folder in (teacher, whole))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    texts = [load_model(folder / "text_encoder").state_dict() for folder in (teacher, whole)]
    assert all(torch.equal(texts[0][name], texts[1][name]) for name in texts[0])
    assert all(math.isfinite(entry["loss"]) for entry in read_log(whole / "training_log.jsonl"))


@pytest.mark.parametrize("objective", RECIPES[:2])
def test_a_student_of_the_other_network(tmp_path: Path, objective: str) -> None:
    config = write_config(tmp_path)  # noqa: F811
    few = ("run.steps=1", "loss.prediction=v")
    run_train(config, few)
    of = of_student(tmp_path, "student", objective, *few, "loss.level_list=[39, 19]")
    student = run_train(config, of)
    tables = [load_model(tmp_path / run / "transformer").context_embedding for run in ("run", "student")]  # type: ignore[union-attr]
    assert torch.equal(*tables)  # type: ignore[arg-type]
    assert student == tmp_path / "student"


def test_what_a_student_cannot_learn_from(config: Path, tmp_path: Path) -> None:  # noqa: F811
    def student(*more: str) -> WanTrainer:
        changes = of_student(tmp_path, "s", "consistency", *more)
        return WanTrainer(read_config(WanTrainConfig, config, changes))

    with pytest.raises(ConfigError, match="nothing is there"):
        student()
    with pytest.raises(ConfigError, match="teacher"):
        student('distillation.teacher=""')
    run_train(config, ["run.steps=1", "run.validate_every=0"])
    with pytest.raises(ConfigError, match="depth"):
        student("model.depth=1")


def test_a_teacher_of_other_classes(tmp_path: Path) -> None:
    config = write_config(tmp_path)  # noqa: F811
    run_train(config, ["run.steps=1"])
    change = of_student(tmp_path, "s", "consistency", "loss.level_list=[39]", "model.num_classes=4")
    with pytest.raises(ConfigError, match="classes"):
        Trainer(read_config(TrainConfig, config, change))
