# SPDX-License-Identifier: Apache-2.0
"""Training of both stages: the frame autoencoder, and the diffusion transformer on its latents."""

from ardiff_engine.training.config import EncodeConfig, TrainConfig, VaeTrainConfig
from ardiff_engine.training.encode import encode, run_encode
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.trainer import dry_run_train, run_train, train
from ardiff_engine.training.vae_trainer import dry_run_train_vae, run_train_vae, train_vae

__all__ = [
    "Clips",
    "Denoising",
    "EncodeConfig",
    "TrainConfig",
    "VaeTrainConfig",
    "dry_run_train",
    "dry_run_train_vae",
    "encode",
    "read_config",
    "run_encode",
    "run_train",
    "run_train_vae",
    "train",
    "train_vae",
]
