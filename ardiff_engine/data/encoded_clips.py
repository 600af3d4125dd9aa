# SPDX-License-Identifier: Apache-2.0
"""Latents of pixel clips through an autoencoder: on the fly, or encoded once before training."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from ardiff_engine.checksum import checksum_of
from ardiff_engine.data.choice import below, uniform
from ardiff_engine.data.clips import ClipSource
from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import check_writable, make_folder, write_atomic
from ardiff_engine.models import TiTok, to_tokens
from ardiff_engine.parsing import check_regular, parsing
from ardiff_engine.purposes import Purpose

FRAMES_PER_PASS = 256
CLIPS_PER_PASS = 16


class LatentSource(Protocol):
    """Clips of latents by sample id, as `ClipSource` is for pixels."""

    def latents(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Unit-norm tokens float32 [B, F, K, c], and class ids int64 [B] where the data have classes."""
        ...

    def held_out(self) -> LatentSource: ...


class EncodedClips:
    """Encodes every clip when it is asked for."""

    def __init__(self, source: ClipSource, vae: TiTok) -> None:
        self.source = source
        self.vae = vae.eval()

    @torch.no_grad()
    def latents(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        images, classes = self.source.clips(samples)
        weight = self.vae.latent_tokens
        z = self.vae.encode(images.to(weight.device, weight.dtype), frames_per_pass=FRAMES_PER_PASS)
        return to_tokens(z).float(), classes

    def held_out(self) -> EncodedClips:
        return EncodedClips(self.source.held_out(), self.vae)


class CachedClips:
    """Clips 0 .. count - 1 of a source, encoded once; a sample is a random window of `num_frames` frames of
    one of them.

    `path` keeps the latents between runs: they are used again if clips, autoencoder and settings are the
    same, and written anew if the file is damaged.
    """

    def __init__(
        self,
        clips: EncodedClips,
        count: int,
        num_frames: int,
        seed: int,
        path: Path | None = None,
        settings: str = "",
    ) -> None:
        self.clips, self.num_frames, self.seed = clips, num_frames, seed
        key = json.dumps([settings, count, encoder_fingerprint(clips.vae)])
        stored = None if path is None else read_stored(path, key)
        if stored is None:
            if path is not None:
                make_folder(path.parent)
                check_writable(path)
            stored = _encode(clips, count)
            if path is not None:
                data = save(stored, {"key": key, "checksum": checksum(stored)})
                write_atomic(path, data)
        self.tokens = stored["tokens"]
        self.classes = stored.get("classes")

    def latents(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        count, frames = self.tokens.shape[:2]
        rows, windows = [], []
        for sample in samples:
            choice = uniform(self.seed, Purpose.WINDOW, sample, 2)
            row, start = below(choice[0], count), below(choice[1], frames - self.num_frames + 1)
            rows.append(row)
            windows.append(self.tokens[row, start : start + self.num_frames])
        return torch.stack(windows), None if self.classes is None else self.classes[rows]

    def held_out(self) -> EncodedClips:
        """Encoded on the fly: whole clips of the source's held-out part, cut to `num_frames`."""
        return _Cut(self.clips.held_out(), self.num_frames)


class _Cut(EncodedClips):
    def __init__(self, clips: EncodedClips, num_frames: int) -> None:
        super().__init__(clips.source, clips.vae)
        self.num_frames = num_frames

    def latents(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens, classes = super().latents(samples)
        return tokens[:, : self.num_frames], classes


def _encode(clips: EncodedClips, count: int) -> dict[str, torch.Tensor]:
    tokens, classes = [], []
    for first in tqdm(range(0, count, CLIPS_PER_PASS), desc="encoding clips", unit="batch", mininterval=1.0):
        part, labels = clips.latents(range(first, min(count, first + CLIPS_PER_PASS)))
        tokens.append(part.cpu())
        classes.append(labels)
    known = [label for label in classes if label is not None]
    found = {"tokens": torch.cat(tokens)}
    return found | ({"classes": torch.cat(known)} if known else {})


def read_stored(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    """What was written under that key; None if it was another one, or the file is damaged or not there."""
    if not path.exists():
        return None
    try:
        check_regular(path)
        with parsing(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except CheckpointError:
        return None
    return stored if metadata.get("checksum") == checksum(stored) else None


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 of names and values."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].contiguous().numpy().data, zlib.crc32(name.encode(), found))
    return str(found)


def encoder_fingerprint(vae: TiTok) -> int:
    """CRC-32 of the part that makes latents; a decoder may go on learning."""
    return checksum_of((vae.latent_tokens, *vae.encoder.state_dict().values()))
