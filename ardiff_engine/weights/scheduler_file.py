# SPDX-License-Identifier: Apache-2.0
"""`scheduler.json` of a pipeline folder: the noise schedule, and what the network predicts."""

from __future__ import annotations

import json
from pathlib import Path

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.files import write_atomic
from ardiff_engine.parsing import read_json


def read_schedule(path: Path) -> tuple[NoiseSchedule, str]:
    """The schedule and the prediction ("x0", "eps", "v"). Raises CheckpointError for anything else."""
    values = read_json(path)
    schedule = values.get("schedule") if isinstance(values, dict) else None
    prediction = values.get("prediction") if isinstance(values, dict) else None
    if not isinstance(schedule, dict) or not isinstance(prediction, str):
        raise CheckpointError(f'{path} must hold {{"schedule": {{…}}, "prediction": "…"}}. Write it again.')
    try:
        return NoiseSchedule.from_config(schedule), prediction
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_schedule(path: Path, schedule: NoiseSchedule, prediction: str) -> None:
    """The file whole or not at all. Raises CheckpointError if the disk refuses."""
    text = json.dumps({"schedule": schedule.to_config(), "prediction": prediction}, indent=2)
    write_atomic(path, f"{text}\n".encode())
