# SPDX-License-Identifier: Apache-2.0
"""Folders that an earlier run has left and a config names."""

from __future__ import annotations

from pathlib import Path

from ardiff_engine.errors import ConfigError
from ardiff_engine.models import TiTok
from ardiff_engine.models.frame_vae import FrameVAEConfig
from ardiff_engine.parsing import parsing
from ardiff_engine.weights import load_titok
from ardiff_engine.weights.native_format import stored_config
from ardiff_engine.weights.safetensors_file import SafetensorsFile


def earlier_run(key: str, folder: str) -> Path:
    """key: the setting that names it. In place of an autoencoder the folder of its run will do. ConfigError:
    nothing is there."""
    path = Path(folder)
    with parsing(f"{key}: {folder!r:.200}", ConfigError):
        if key == "vae" and (path / "vae").is_dir():
            return path / "vae"
        if path.exists():
            return path
    first = "Run `ardiff train-vae`" if key == "vae" else "Finish that run"
    raise ConfigError(
        f"{key}: got {folder!r:.200}, and nothing is there; expected what an earlier run has left. "
        f"{first} first, or correct the path."
    )


def token_autoencoder(folder: str) -> TiTok:
    """Of `vae`. ConfigError: nothing there, or a frame_vae, whose latents are no tokens."""
    path = earlier_run("vae", folder)
    stored = stored_config(SafetensorsFile(path))
    if stored is not None and isinstance(stored[1], FrameVAEConfig):
        raise ConfigError(
            f"vae: got {folder!r:.200}, a frame_vae, expected a TiTok of `ardiff train-vae`. Latents of a "
            "frame_vae are not kept as files and have no classes: give `ardiff train` network = 'wan' and "
            "data.source = 'videos', with a class in words in each video's .txt file."
        )
    return load_titok(path)
