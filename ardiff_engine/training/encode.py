# SPDX-License-Identifier: Apache-2.0
"""Videos to latent files in the official layout, so that stage 2 never touches pixels."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ardiff_engine.data.encoded_clips import encoder_fingerprint
from ardiff_engine.data.latent_files import latent_file_name, write_latents
from ardiff_engine.data.video_folder import find_videos
from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError, ConfigError, MediaError, explain
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.media import Video, open_video
from ardiff_engine.media.crop import cropped_image
from ardiff_engine.models import TiTok, to_tokens
from ardiff_engine.parsing import read_json
from ardiff_engine.training.config import EncodeConfig
from ardiff_engine.training.earlier_run import token_autoencoder
from ardiff_engine.training.latent_spread import LatentSpread
from ardiff_engine.training.read_config import read_config

CLASS_SUFFIX = re.compile(r"_classid(\d+)$")
SETTINGS_FILE = "encoding.json"

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode(config: EncodeConfig) -> Path:
    """Writes the posterior mean of every window of every video; files that exist are skipped, so it can be
    interrupted.

    Window w of video v becomes `<v>_<w>_<name>_.npy`, float32 [num_frames, c, 1, K]; a video name that ends
    in `_classid<n>` keeps that ending. Videos that cannot be read are reported by name and skipped, from the
    damage on. Each is decoded once, one window of it in memory.
    `encoding.json` beside them says what they were made from. A warning says if the latents hardly vary.

    Raises:
        MediaError: no file could be written.
        ConfigError: the folder holds latents of other settings, videos or another autoencoder.
    """
    device = usable_device(config.device)
    root, output = Path(config.videos), Path(config.output)
    videos = find_videos(root)
    vae = token_autoencoder(config.vae).to(device).eval()
    _claim(make_folder(output), _settings(config, videos, vae))
    written, skipped, spread = 0, 0, LatentSpread()
    for number, path in enumerate(tqdm(videos, desc="encoding videos", unit="video")):
        name = "-".join(path.relative_to(root).with_suffix("").parts)
        found = CLASS_SUFFIX.search(name)
        class_id = None if found is None else int(found.group(1))
        name = CLASS_SUFFIX.sub("", name).replace("_", "-")
        try:
            for window, clip in enumerate(
                _windows(open_video(path, config.fps), config, vae.config.image_size)
            ):
                target = output / latent_file_name(number, name, class_id=class_id, item=window)
                if not target.exists():
                    latents = vae.encode(torch.stack(list(clip))[None].to(device))
                    spread.add(to_tokens(latents))
                    write_latents(target, latents[0])
                written += 1
        except MediaError as error:
            skipped += 1
            logger.warning("skipped, %d of %d so far: %s", skipped, len(videos), error)
    if not written:
        raise MediaError(
            explain(
                "encode",
                got=f"no clip in {root}",
                expected=f"videos of at least {config.num_frames} frames",
                fix="Lower num_frames.",
            )
        )
    spread.warn()
    return output


def _windows(video: Video, config: EncodeConfig, size: int) -> Iterator[deque[torch.Tensor]]:
    """Windows of float32 [3, size, size], one after another; the video is decoded once, and only one window
    of it is in memory."""
    window: deque[torch.Tensor] = deque(maxlen=config.num_frames)
    for index, frame in enumerate(video.play()):
        start = index + 1 - config.num_frames
        window.append(cropped_image(frame, size))
        if start >= 0 and start % config.stride == 0:
            yield window


def _settings(config: EncodeConfig, videos: Sequence[Path], vae: TiTok) -> dict[str, float]:
    """What the latents depend on, as numbers that can be compared."""
    root = Path(config.videos)
    listing = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in videos]
    return {
        "num_frames": config.num_frames,
        "stride": config.stride,
        "fps": config.fps or 0,
        "vae": encoder_fingerprint(vae),
        "videos": zlib.crc32(json.dumps(listing).encode()),
    }


def _claim(output: Path, settings: dict[str, float]) -> None:
    """Notes the settings in the folder, or refuses one that was written with others."""
    path = output / SETTINGS_FILE
    if path.exists():
        try:
            before = read_json(path)
        except CheckpointError:
            before = None
        different = [name for name, value in settings.items() if not _holds(before, name, value)]
    else:
        different = ["no note of their settings"] if any(output.glob("*.npy")) else []
    if different:
        raise ConfigError(
            explain(
                "output",
                got=f"{output}, whose latents were made from something else ({', '.join(different)})",
                expected="an empty folder, or one with latents of the same videos, settings and autoencoder",
                fix="Choose another folder, or empty this one.",
            )
        )
    if not path.exists():
        data = (json.dumps(settings, indent=1) + "\n").encode()
        write_atomic(path, data)


def _holds(values: object, name: str, value: float) -> bool:
    return isinstance(values, dict) and values.get(name) == value


def run_encode(config_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """`encode` with a TOML file and `name=value` overrides."""
    return encode(read_config(EncodeConfig, config_path, overrides))
