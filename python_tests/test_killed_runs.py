# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at random moments ends with the bits of one that was not. ARDIFF_KILLS: how often."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.small_training import assert_same_weights, write_config

from ardiff_engine.training.config import TrainConfig
from ardiff_engine.training.log import read_log
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.throughput import SPEED
from ardiff_engine.training.trainer import train

KILLS = int(os.environ.get("ARDIFF_KILLS", "25"))
STEPS = 5 * KILLS
# Forked from a process that has imported everything and computed nothing.
KILL = """
import os, random, signal, sys, time
from pathlib import Path
from ardiff_engine.training.checkpoint import newest_checkpoint
from ardiff_engine.training.config import TrainConfig
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.trainer import train

path, kills, *changes = sys.argv[1:]
config = read_config(TrainConfig, path, changes)
folder = Path(config.run.output) / "checkpoints"
chance = random.Random(16)

def reached():
    return max([-1, *(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))])

for _ in range(int(kills)):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            train(config, resume=True)
        finally:
            os._exit(0)
    # As far as it got before, or up to three checkpoints on; then at any moment of a step or a save.
    goal, began = reached() + chance.randint(0, 3), time.monotonic()
    while reached() < goal and time.monotonic() < began + 300:
        time.sleep(0.001)
    end = time.monotonic() + chance.uniform(0.0, 0.3)
    while time.monotonic() < end and reached() <= goal + 1:  # a fast machine would be through too soon
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = newest_checkpoint(folder)
    print(-1 if found is None else found.step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    changes = ["run.checkpoint_every=1", "run.validate_every=50"]
    whole = train(read_config(TrainConfig, write_config(tmp_path, "whole", STEPS), changes))
    path = write_config(tmp_path, "killed", STEPS)
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(path), str(KILLS), *changes],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    reached = [int(line) for line in done.stdout.split()]
    assert len(reached) == KILLS and all(early <= late for early, late in pairwise(reached))
    assert 0 < reached[-1] < STEPS and len(set(reached)) > KILLS // 3, reached
    # A checkpoint that is not whole would be passed over with a warning.
    assert "damaged" not in done.stderr
    killed = train(read_config(TrainConfig, path, changes), resume=True)
    assert_same_weights(whole, killed)
    logs = [
        [
            {name: value for name, value in entry.items() if name not in SPEED}
            for entry in read_log(folder / "training_log.jsonl")
        ]
        for folder in (whole, killed)
    ]
    assert logs[0] == logs[1]
