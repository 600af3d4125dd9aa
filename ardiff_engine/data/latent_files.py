# SPDX-License-Identifier: Apache-2.0
"""Latent files in the official layout: one .npy per clip, float32 [F, c, 1, K], posterior mean, not
normalised.

Names are `{step:04d}_{item:02d}_{video}_{rank}.npy`; a video name that ends in `_classid<n>` gives the class
(iva-mzsun/AR-Diffusion @ 7a37b94).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.errors import DataError, explain
from ardiff_engine.files import write_atomic
from ardiff_engine.models import to_tokens

CLASS_PATTERN = re.compile(r"_classid(\d+)")
PURPOSE_FILE = 16


def latent_file_name(
    index: int, video: str, *, class_id: int | None = None, item: int = 0, rank: int | None = None
) -> str:
    """The official file name of clip number `index`."""
    label = "" if class_id is None else f"_classid{class_id}"
    return f"{index:04d}_{item:02d}_{video}{label}_{'' if rank is None else rank}.npy"


def write_latents(path: Path, z: torch.Tensor) -> None:
    """z [F, c, 1, K] as float32; the file appears whole or not at all."""
    array = z.detach().cpu().float().numpy()
    write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))


def read_latents(path: Path) -> NDArray[np.float32]:
    """float32 [F, c, 1, K]. Raises DataError naming the file for anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            explain(
                f"latent file {path}",
                got=repr(error),
                expected="an .npy file",
                fix="Encode it again or remove it.",
            )
        ) from error
    if array.ndim != 4 or array.shape[2] != 1 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            explain(
                f"latent file {path}",
                got=f"{array.dtype} {array.shape}",
                expected="float32 [F, c, 1, K]",
                fix="Encode it again or remove it.",
            )
        )
    if not np.isfinite(array).all():
        raise DataError(
            explain(
                f"latent file {path}",
                got="NaN or infinity",
                expected="finite numbers",
                fix="Encode it again or remove it.",
            )
        )
    return array.astype(np.float32)


class LatentFiles:
    """Clips of `num_frames` frames from a folder of latent files; the last `held_out` files by name are kept
    apart.

    cell: (tokens, channels) of a frame, the same in all files.

    Raises DataError when the folder has no file that is long enough, when only some names hold a class, and,
    as soon as it is drawn, for a file of another size or with numbers that are not finite.
    """

    def __init__(
        self, folder: str | Path, num_frames: int, held_out: int, *, seed: int = 0, part: str = "train"
    ) -> None:
        self.folder, self.num_frames, self.kept, self.seed, self.part = (
            Path(folder),
            num_frames,
            held_out,
            seed,
            part,
        )
        every = sorted(self.folder.glob("*.npy"))
        split = max(1, len(every) - held_out)
        self.files = every[:split] if part == "train" else every[split:] or every[:1]
        if not every:
            raise DataError(
                explain(
                    "data.path",
                    got=f"no .npy file in {folder}",
                    expected="latent files",
                    fix="Write them with `ardiff encode`.",
                )
            )
        labelled = [path for path in every if CLASS_PATTERN.search(path.name)]
        if labelled and len(labelled) < len(every):
            plain = next(path for path in every if not CLASS_PATTERN.search(path.name))
            raise DataError(
                explain(
                    f"latent file {plain}",
                    got="no class in its name",
                    expected=f"_classid<n>, as in {labelled[0].name}",
                    fix="Name all files with a class, or none.",
                )
            )
        frames, channels, _, tokens = read_latents(self.files[0]).shape
        self.cell = (tokens, channels)
        if frames < num_frames:
            raise DataError(
                explain(
                    f"latent file {self.files[0]}",
                    got=f"{frames} frames",
                    expected=f">= {num_frames}",
                    fix="Encode longer clips.",
                )
            )

    def latents(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Unit-norm tokens [B, F, K, c] and class ids [B] (None where the names hold none)."""
        clips, classes = [], []
        for sample in samples:
            choice = uniform(self.seed, PURPOSE_FILE, sample, 2)
            path = self.files[below(choice[0], len(self.files))]
            array = read_latents(path)
            if len(array) < self.num_frames:
                raise DataError(
                    explain(
                        f"latent file {path}",
                        got=f"{len(array)} frames",
                        expected=f">= {self.num_frames}",
                        fix="Remove it.",
                    )
                )
            if (array.shape[3], array.shape[1]) != self.cell:
                raise DataError(
                    explain(
                        f"latent file {path}",
                        got=f"{array.shape[3]} tokens x {array.shape[1]} channels per frame",
                        expected=f"{self.cell[0]} x {self.cell[1]}, as in {self.files[0].name}",
                        fix="Encode it again or remove it.",
                    )
                )
            start = below(choice[1], len(array) - self.num_frames + 1)
            clips.append(torch.from_numpy(array[start : start + self.num_frames]))
            found = CLASS_PATTERN.search(path.name)
            classes.append(None if found is None else int(found.group(1)))
        known = [label for label in classes if label is not None]
        return to_tokens(torch.stack(clips)), torch.tensor(known) if len(known) == len(classes) else None

    def held_out(self) -> LatentFiles:
        return LatentFiles(self.folder, self.num_frames, self.kept, seed=self.seed, part="held_out")
