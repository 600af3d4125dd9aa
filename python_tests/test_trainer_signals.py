# SPDX-License-Identifier: Apache-2.0
"""Training in a process that is killed, and one that is told to end: it goes on bit for bit."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import started
from helpers.small_training import write_config
from helpers.waiting import PATIENCE, eventually

from ardiff_engine.training import run_train
from ardiff_engine.training.checkpoint import checkpoints
from ardiff_engine.training.log import read_log


def _process(config: Path, *overrides: str) -> contextlib.AbstractContextManager[subprocess.Popen[Any]]:
    command = [sys.executable, "-m", "ardiff_engine.cli", "train", str(config)]
    command += [f"--set={override}" for override in overrides]
    return started(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_says_so_and_ends_with_its_code(tmp_path: Path, number: signal.Signals) -> None:
    """So that `ardiff train-vae ... && ardiff encode ...` does not go on with a half-trained model."""
    config = write_config(tmp_path, steps=100_000)
    log = tmp_path / "run" / "training_log.jsonl"
    with _process(config, "run.checkpoint_every=0", "run.validate_every=0") as process:

        def has_begun() -> bool:
            assert process.poll() is None, process.communicate()
            return log.exists() and len(read_log(log)) >= 3

        assert eventually(has_begun)
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    (saved,) = checkpoints(tmp_path / "run" / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert f"stopped at step {step} of 100000; go on with --resume" in told.decode()
    assert (tmp_path / "run" / "transformer" / "model.safetensors").exists()
    run_train(str(config), [f"run.steps={step + 1}", "run.validate_every=0"], resume=True)
    assert read_log(log)[-1]["step"] == step + 1
