# SPDX-License-Identifier: Apache-2.0
"""Videos to latent files in the official layout, so that stage 2 never touches pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ardiff_engine.data.clips import to_images
from ardiff_engine.data.latent_files import latent_file_name, write_latents
from ardiff_engine.data.video_folder import find_videos, resize_and_crop
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.training.config import EncodeConfig
from ardiff_engine.training.read_config import read_config
from ardiff_engine.weights import load_titok

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode(config: EncodeConfig) -> Path:
    """Writes the posterior mean of every window of every video; files that exist are skipped, so it can be
    interrupted.

    Window w of video v becomes `<v>_<w>_<name>_.npy`, float32 [num_frames, c, 1, K]. Videos that cannot be
    read are reported by name and skipped. Raises MediaError when no file could be written.
    """
    from ardiff_engine.media import read_video

    vae = load_titok(config.vae).to(config.device).eval()
    root, output = Path(config.videos), Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, path in enumerate(tqdm(find_videos(root), desc="encoding videos", unit="video")):
        try:
            video = np.asarray(read_video(path))
        except MediaError as error:
            logger.warning("skipped: %s", error)
            continue
        name = "-".join(path.relative_to(root).with_suffix("").parts).replace("_", "-")
        for window, start in enumerate(range(0, len(video) - config.num_frames + 1, config.stride)):
            target = output / latent_file_name(number, name, item=window)
            if not target.exists():
                clip = to_images(video[start : start + config.num_frames])
                clip = resize_and_crop(clip, vae.config.image_size).to(config.device)
                write_latents(target, vae.encode(clip[None])[0])
            written += 1
    if not written:
        raise MediaError(
            explain(
                "encode",
                got=f"no clip in {root}",
                expected=f"videos of at least {config.num_frames} frames",
                fix="Lower num_frames.",
            )
        )
    return output


def run_encode(config_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """`encode` with a TOML file and `name=value` overrides."""
    return encode(read_config(EncodeConfig, config_path, overrides))
