# SPDX-License-Identifier: Apache-2.0
"""Latents of moving shapes that are encoded once and kept in a file: with a small transformer, drawing and
encoding a clip takes longer than a training step on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from ardiff_engine.checksum import checksum_of
from ardiff_engine.data.choice import below, uniform
from ardiff_engine.data.encoded_clips import CLIPS_PER_PASS, checksum, read_stored
from ardiff_engine.data.shape_drawing import DRAWING
from ardiff_engine.data.steered_clips import SteeredClips, SteeredShapes, keys_held
from ardiff_engine.files import check_writable, make_folder, write_atomic
from ardiff_engine.models.frame_vae import FrameVAE
from ardiff_engine.purposes import Purpose


class StoredShapes:
    """Clips 0 .. count - 1 of a source. A sample is a window of one of them, with the caption of its scene: a
    share `beginnings` begins with the scene, as the caption says; others go on with it, at any frame, and the
    caption's direction is then that of some time ago, as it is while a long video is made.

    `path` keeps the latents (float16) between runs: they are used again if world, autoencoder and sizes are
    the same, and written anew if the file is damaged.
    """

    def __init__(
        self,
        source: SteeredShapes,
        count: int,
        num_frames: int,
        seed: int,
        path: Path,
        beginnings: float = 1.0,
    ) -> None:
        """num_frames: of a window; those of the clips are the source's."""
        self.source, self.num_frames, self.seed, self.beginnings = source, num_frames, seed, beginnings
        settings = [DRAWING, asdict(source.shapes), source.num_frames, count, fingerprint(source.vae)]
        key = json.dumps(settings)
        stored = read_stored(path, key)
        if stored is None:
            make_folder(path.parent)
            check_writable(path)
            stored = _encode(source, count)
            write_atomic(path, save(stored, {"key": key, "checksum": checksum(stored)}))
        self._latents, self._actions = stored["latents"], stored["actions"]

    def clips(self, samples: Sequence[int]) -> SteeredClips:
        count, frames = self._latents.shape[:2]
        rows, starts = [], []
        for sample in samples:
            choice = uniform(self.seed, Purpose.WINDOW, sample, 3)
            rows.append(below(choice[0], count))
            begins = choice[1] < self.beginnings
            starts.append(0 if begins else below(choice[2], frames - self.num_frames + 1))
        windows = [slice(start, start + self.num_frames) for start in starts]
        latents = [self._latents[row, window] for row, window in zip(rows, windows, strict=True)]
        actions = [self._actions[row, window] for row, window in zip(rows, windows, strict=True)]
        captions = [self.source.shapes.caption(row) for row in rows]
        keys, begins = keys_held(torch.stack(actions).long()), torch.tensor(starts) == 0
        return SteeredClips(torch.stack(latents).float(), captions, keys, begins)

    def held_out(self) -> SteeredShapes:
        """Encoded when they are asked for."""
        held_out = self.source.held_out()
        return SteeredShapes(held_out.shapes, held_out.vae, self.num_frames)


def fingerprint(vae: FrameVAE) -> int:
    """CRC-32 of the part that makes latents; a decoder may go on learning."""
    return checksum_of((*vae.encoder.state_dict().values(), vae.mean, vae.variance))


def _encode(source: SteeredShapes, count: int) -> dict[str, torch.Tensor]:
    parts = []
    for first in tqdm(range(0, count, CLIPS_PER_PASS), desc="encoding clips", unit="batch", mininterval=1.0):
        made = source.drawn(range(first, min(count, first + CLIPS_PER_PASS)))
        keys = torch.from_numpy(np.stack([clip.actions for clip in made])).to(torch.uint8)
        parts.append((source.encoded(made).half().cpu(), keys))
    latents, actions = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"latents": latents, "actions": actions}
