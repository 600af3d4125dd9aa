# SPDX-License-Identifier: Apache-2.0
"""The folder of a pipeline: transformer/, vae/ and scheduler.json."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ardiff_engine import arguments
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import CheckpointError
from ardiff_engine.weights import load_model, save_model
from ardiff_engine.weights.scheduler_file import write_schedule

ASSETS = Path(__file__).parents[1] / "assets"
SCHEDULER_FILE = "scheduler.json"


def find_folder(name: str | Path) -> Path:
    """The folder of a bundled model, or `name` itself. CheckpointError where it holds no pipeline."""
    folder = arguments.path("model", name)
    if (ASSETS / folder / SCHEDULER_FILE).is_file():
        folder = ASSETS / folder
    if not (folder / SCHEDULER_FILE).is_file():
        bundled = sorted(path.parent.name for path in ASSETS.glob(f"*/{SCHEDULER_FILE}"))
        raise CheckpointError(
            f"model: got {str(name)!r}, expected a folder with {SCHEDULER_FILE}, or one of {bundled}. Check "
            "the path. Official files: weights.load_ar_diffusion and weights.load_titok."
        )
    return folder


def load_models(folder: Path, device: str | torch.device, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The autoencoder is float32 whatever `dtype`: it is the smaller part, and pictures show its rounding."""
    transformer = load_model(folder / "transformer", device=device, dtype=dtype)
    vae = load_model(folder / "vae", device=device, dtype=torch.float32)
    return transformer, vae


def save_pipeline(
    folder: Path, transformer: nn.Module, vae: nn.Module, schedule: NoiseSchedule, prediction: str
) -> None:
    """Each file appears whole or not at all."""
    save_model(transformer, folder / "transformer")
    save_model(vae, folder / "vae")
    write_schedule(folder / SCHEDULER_FILE, schedule, prediction)
