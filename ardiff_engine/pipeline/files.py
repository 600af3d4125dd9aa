# SPDX-License-Identifier: Apache-2.0
"""The folder of a pipeline: transformer/, vae/ and scheduler.json. That of a steered model, which
`ardiff train` leaves with network = "wan": text_encoder/ and training_config.json instead of the last."""

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
CONFIG_FILE = "training_config.json"


def find_folder(name: str | Path) -> Path:
    """The folder of a bundled model, or `name` itself. CheckpointError where it holds no pipeline."""
    folder = arguments.path("model", name)
    refuse_steered(folder)
    if (ASSETS / folder / SCHEDULER_FILE).is_file():
        folder = ASSETS / folder
    if not (folder / SCHEDULER_FILE).is_file():
        bundled = sorted(path.parent.name for path in ASSETS.glob(f"*/{SCHEDULER_FILE}"))
        raise CheckpointError(
            f"model: got {str(name)!r}, expected a folder with {SCHEDULER_FILE}, or one of {bundled}. Check "
            "the path. Official files: weights.load_ar_diffusion and weights.load_titok."
        )
    return folder


def steered_folder(model: str | Path) -> Path | None:
    """The folder of a bundled model or of that name, if it holds a steered one."""
    path = arguments.path("model", model)
    for folder in (ASSETS / path, path):
        if (folder / CONFIG_FILE).is_file() and (folder / "text_encoder").is_dir():
            return folder
    return None


def refuse_steered(model: Path) -> None:
    """CheckpointError: a folder that another pipeline reads."""
    if steered_folder(model) is not None:
        raise CheckpointError(
            f"model: {str(model)!r:.200} holds a steered model. `ardiff play --model ... --prompt TEXT "
            "--frames N --out FILE` makes a video with it, `ardiff serve` serves it, and "
            "pipeline.steered.SteeredPipeline runs it in Python."
        )


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
