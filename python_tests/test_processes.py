# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes (gloo) are the run of one with as many clips per step, whole or sharded, and
checkpoints of any number of processes are continued by any other."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.processes import start_together
from helpers.small_training import write_config
from safetensors.torch import load_file
from test_wan_trainer import TOML as WAN

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.training import run_train
from ardiff_engine.training.checkpoint import load_checkpoint
from ardiff_engine.training.log import read_log
from ardiff_engine.training.throughput import SPEED
from ardiff_engine.weights import save_model

pytestmark = pytest.mark.slow
CLIPS = 6
# Three files are trained on: their rounds end within a step, and within what one process draws.
COMMON = [
    "loss.teacher_forcing=0.5",
    "run.steps=4",
    "run.checkpoint_every=2",
    "run.log_every=2",
    "run.threads=1",
]
# Each process does all runs of a list, and joins the others once.
RANK = """
import json, sys
from ardiff_engine import command_end
from ardiff_engine.training import run_train
for config, changes, resume in json.loads(sys.argv[1]):
    run_train(config, changes, resume)
command_end.at_once(0)
"""
Job = tuple[str, list[str], bool]


def launch(count: int, jobs: Sequence[Job]) -> list[str]:
    """What each process wrote to stderr; all must end well."""
    ends = start_together(count, [sys.executable, "-c", RANK, json.dumps(jobs)])
    assert all(end.code == 0 for end in ends), ends
    return [end.told for end in ends]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    save_model(FrameVAE(FrameVAEConfig(image_size=32, channels=4, width=8)).eval(), folder / "vae")
    wan = folder / "wan.toml"
    wan.write_text(WAN.format(folder=folder))
    return {"ar": write_config(folder, "ar"), "wan": wan, "folder": folder}


def job(
    configs: dict[str, Path], network: str, name: str, count: int, *more: str, resume: bool = False
) -> Job:
    changes = [
        *COMMON,
        "run.accumulate=1",
        f"run.batch={CLIPS // count}",
        f"run.output={json.dumps(str(configs['folder'] / name))}",
        *more,
    ]
    return str(configs[network]), changes, resume


EXACT, SHARDED = "run.precision=float64", "run.shard=true"
STUDENT = ["loss.objective=consistency", "distillation.teacher_steps=4", "run.validate_every=0"]
FORCED = [
    *STUDENT,
    "loss.objective=self_forcing",
    "loss.level_list=[999, 499]",
    "distillation.fake_updates=2",
]
AGAINST_MORE = [*FORCED, "loss.objective=adversarial_self_distillation"]


@pytest.fixture(scope="module")
def runs(configs: dict[str, Path]) -> Path:
    """One process: <network>; two: <network>_two, <network>_parts (sharded); three: ar_three."""
    folder = configs["folder"]
    teacher = f"distillation.teacher={json.dumps(str(folder / 'wan'))}"
    for network in ("ar", "wan"):
        run_train(*job(configs, network, network, 1, EXACT))
    run_train(*job(configs, "ar", "ar32", 1))
    run_train(*job(configs, "wan", "student", 1, EXACT, teacher, *STUDENT))
    run_train(*job(configs, "wan", "forced", 1, EXACT, teacher, *FORCED))
    run_train(*job(configs, "wan", "against", 1, EXACT, teacher, *AGAINST_MORE))
    launch(
        2,
        [
            job(configs, "ar", "ar_two", 2, EXACT),
            job(configs, "wan", "wan_two", 2, EXACT),
            job(configs, "ar", "ar_parts", 2, EXACT, SHARDED),
            job(configs, "wan", "wan_parts", 2, EXACT, SHARDED),
            job(configs, "ar", "ar32_parts", 2, SHARDED),
            job(configs, "ar", "ar32_two", 2),
            job(configs, "wan", "student_parts", 2, EXACT, SHARDED, teacher, *STUDENT),
            job(configs, "wan", "forced_parts", 2, EXACT, SHARDED, teacher, *FORCED),
            job(configs, "wan", "against_parts", 2, EXACT, SHARDED, teacher, *AGAINST_MORE),
        ],
    )
    launch(3, [job(configs, "ar", "ar_three", 3, EXACT, SHARDED)])
    return folder


def distance(one: Path, other: Path) -> float:
    """Relative, of all weights of the models that the runs left."""
    a, b = (load_file(folder / "transformer" / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys() and all(a[name].dtype == b[name].dtype for name in a)
    both = (torch.cat([x[name].double().flatten() for name in a]) for x in (a, b))
    first, second = both
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize(
    ("alone", "together", "most"),
    [
        ("ar", "ar_two", 1e-12),
        ("ar", "ar_parts", 1e-12),
        ("ar", "ar_three", 1e-12),
        ("wan", "wan_two", 1e-12),
        ("wan", "wan_parts", 1e-12),
        ("ar32", "ar32_two", 1e-5),
        ("ar32", "ar32_parts", 1e-5),
        ("student", "student_parts", 1e-12),
        ("forced", "forced_parts", 1e-5),  # videos are float32
        ("against", "against_parts", 1e-5),
    ],
)
def test_several_processes_are_one_with_all_their_clips(
    runs: Path, alone: str, together: str, most: float
) -> None:
    found = distance(runs / alone, runs / together)
    assert found < most
    logs = [read_log(runs / name / "training_log.jsonl") for name in (alone, together)]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        # teacher_loss and diffusion_loss too, of which the processes have unequal numbers of clips.
        for name in one.keys() - SPEED:
            assert one[name] == pytest.approx(two[name], abs=2e-6, rel=max(most, 1e-6)), name


def test_each_process_writes_its_part_and_nothing_is_pickled(runs: Path) -> None:
    for name, count in (("ar_parts", 2), ("ar_three", 3)):
        files = sorted(path.name for path in (runs / name / "checkpoints" / "step-00000004").iterdir())
        assert len(files) == count + 2 and all(file.endswith((".json", ".safetensors")) for file in files)
    parts = [load_file(path) for path in (runs / "ar_parts/checkpoints/step-00000004").glob("shard-*")]
    whole = load_checkpoint(runs / "ar/checkpoints/step-00000004").tensors["model"]
    weight = "blocks.0.attn.qkv.weight"
    shapes = [tuple(part[f"model/{weight}"].shape) for part in parts]
    assert sum(shape[0] for shape in shapes) == whole[weight].shape[0] and len(shapes) == 2


def halfway(runs: Path, of: str, name: str) -> None:
    shutil.copytree(runs / of, runs / name)
    shutil.rmtree(runs / name / "checkpoints" / "step-00000004")


def test_a_checkpoint_goes_on_with_another_number_of_processes(configs: dict[str, Path], runs: Path) -> None:
    on = {1: ["ar_parts", "ar_three", "ar_two"], 2: ["ar", "ar_three"], 3: ["ar", "ar_two", "ar_parts"]}
    for count, before in on.items():
        jobs = []
        for of in before:
            halfway(runs, of, f"{of}_on_{count}")
            shard = [SHARDED] if count > 1 else []
            jobs.append(job(configs, "ar", f"{of}_on_{count}", count, EXACT, *shard, resume=True))
        if count > 1:
            launch(count, jobs)
        else:
            for each in jobs:
                run_train(*each)
        for of in before:
            assert distance(runs / "ar", runs / f"{of}_on_{count}") < 1e-12, (of, count)


def test_a_damaged_part_is_noticed_and_other_runs_are_refused(configs: dict[str, Path], runs: Path) -> None:
    folder = runs / "ar_parts" / "checkpoints" / "step-00000004"
    found = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="another run"):
        found.restore({"model": {"weight": torch.zeros(1)}})
    shutil.copytree(runs / "ar_parts", runs / "damaged")
    part = next((runs / "damaged" / "checkpoints" / "step-00000004").glob("shard-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="shard"):
        load_checkpoint(part.parent)


def test_a_process_that_cannot_save_does_not_leave_the_others_waiting(configs: dict[str, Path]) -> None:
    for number, more in enumerate(([], [SHARDED])):
        name = f"full{number}"
        (configs["folder"] / name).mkdir()
        (configs["folder"] / name / "checkpoints").write_bytes(b"a file where the folder should be")
        config, changes, _ = job(configs, "ar", name, 2, *more)
        options = [f"--set={change}" for change in changes]
        ends = start_together(2, [sys.executable, "-m", "ardiff_engine.cli", "train", config, *options])
        assert all(end.code in (1, 2) for end in ends), ends
        assert "writing" in ends[0].told and "process of this run has failed" in ends[1].told


def test_one_process_and_stage_one_have_nothing_to_shard(configs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        run_train(*job(configs, "ar", "alone", 1, SHARDED))
