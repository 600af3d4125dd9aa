# SPDX-License-Identifier: Apache-2.0
"""Folders that an earlier run has left and a config names."""

from __future__ import annotations

from pathlib import Path

from ardiff_engine.errors import ConfigError
from ardiff_engine.parsing import parsing


def earlier_run(key: str, folder: str) -> Path:
    """key: the setting that names it. In place of an autoencoder the folder of its run will do. ConfigError:
    nothing is there."""
    path = Path(folder)
    with parsing(f"{key}: {folder!r:.200}", ConfigError):
        if key == "vae" and (path / "vae").is_dir():
            return path / "vae"
        if path.exists():
            return path
    command = "ardiff train-vae" if key == "vae" else "the run that it is of"
    raise ConfigError(
        f"{key}: got {folder!r:.200}, and nothing is there; expected what an earlier run has left. Do "
        f"{command} first, or correct the path."
    )
