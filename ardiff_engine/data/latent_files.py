# SPDX-License-Identifier: Apache-2.0
"""Latent files in the official layout: one .npy per clip, float32 [F, c, 1, K], posterior mean, not
normalised.

Names are `{step:04d}_{item:02d}_{video}_{rank}.npy`; a video name that ends in `_classid<n>` gives the class
(iva-mzsun/AR-Diffusion @ 7a37b94).
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.data.choice import below, shuffled, uniform
from ardiff_engine.data.held_out import most_held_out
from ardiff_engine.errors import DataError, explain
from ardiff_engine.files import write_atomic
from ardiff_engine.models import to_tokens
from ardiff_engine.parsing import check_regular, parsing
from ardiff_engine.purposes import Purpose

AGAIN = "Encode it again or remove it."
# Below, `to_tokens` does not normalise; above, squares of float32 overflow.
SHORTEST, LONGEST = 1e-9, 1e15
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
CLASS_PATTERN = re.compile(r"_classid(\d{1,18})(?!\d)")
NAME_PATTERN = re.compile(r"(?P<index>\d+)_\d+_(?P<video>.+)_[^_]*")

logger = logging.getLogger(__name__)


def latent_file_name(
    index: int, video: str, *, class_id: int | None = None, item: int = 0, rank: int | None = None
) -> str:
    """The official file name of clip number `index`."""
    label = "" if class_id is None else f"_classid{class_id}"
    return f"{index:04d}_{item:02d}_{video}{label}_{'' if rank is None else rank}.npy"


def write_latents(path: Path, z: torch.Tensor) -> None:
    """z [F, c, 1, K] as float32; the file appears whole or not at all. CheckpointError: the disk refuses."""
    held = io.BytesIO()  # NumPy's own writes do not say why the disk refused
    np.save(held, z.detach().cpu().float().numpy(), allow_pickle=False)
    write_atomic(path, held.getvalue())


def read_latents(path: Path) -> NDArray[np.float32]:
    """float32 [F, c, 1, K], every token of which has a length |z|_2 over c that can be
    normalised: 1e-9 to 1e15.

    The header is checked against the size of the file before anything is allocated. Raises DataError naming
    the file for anything else.
    """
    size = check_regular(path, DataError)
    with parsing(path, DataError, AGAIN), open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADER_READERS:
            raise DataError(f"{path} is an .npy file of version {version}, expected 1 or 2. {AGAIN}")
        shape, transposed, dtype = HEADER_READERS[version](file)
        start = file.tell()
    if len(shape) != 4 or shape[2] != 1 or min(shape) < 1 or dtype.kind != "f" or dtype.itemsize > 8:
        raise DataError(f"{path} holds {dtype} {shape}, expected float32 [F, c, 1, K]. {AGAIN}")
    if size != start + math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path} has {size} bytes, and its header says {shape} of {dtype}. {AGAIN}")
    with parsing(path, DataError, AGAIN):
        stored = np.fromfile(path, dtype, offset=start)
        with np.errstate(over="ignore"):
            array = stored.reshape(shape, order="F" if transposed else "C").astype(np.float32)
    lengths = np.sqrt(np.einsum("fcok,fcok->fok", array, array, dtype=np.float64))
    if not bool(((lengths >= SHORTEST) & (lengths <= LONGEST)).all()):  # written so that NaN fails too
        raise DataError(
            f"{path} holds NaN, infinity, or a token whose length is not {SHORTEST} to {LONGEST}. {AGAIN}"
        )
    return array


class LatentFiles:
    """Clips of `num_frames` frames from a folder of latent files. Each file is drawn once before one is drawn
    again; where in it the clip starts is random.

    Whole videos are kept apart, the last ones by name, until they hold `held_out` files, at most a third of
    the videos: windows of one video overlap, and a model would be judged by frames that it was trained on.

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
        with parsing(folder, DataError, "Check data.path."):
            every = sorted(self.folder.glob("*.npy"), key=_natural)
        trained, kept = _split(every, held_out)
        self.files = trained if part == "train" else kept or every[:1]
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
            path = self.files[shuffled(self.seed, Purpose.FILE, sample, len(self.files))]
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
            (share,) = uniform(self.seed, Purpose.FILE, sample, 1)
            start = below(share, len(array) - self.num_frames + 1)
            clips.append(torch.from_numpy(array[start : start + self.num_frames]))
            found = CLASS_PATTERN.search(path.name)
            classes.append(None if found is None else int(found.group(1)))
        known = [label for label in classes if label is not None]
        return to_tokens(torch.stack(clips)), torch.tensor(known) if len(known) == len(classes) else None

    def held_out(self) -> LatentFiles:
        return LatentFiles(self.folder, self.num_frames, self.kept, seed=self.seed, part="held_out")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Window 100 comes after window 99."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _split(files: list[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """(files to train on, files to keep apart), whole videos each, as far as their names tell."""
    matches = [NAME_PATTERN.fullmatch(CLASS_PATTERN.sub("", path.stem)) for path in files]
    names = [
        (match["video"], match["index"]) if match else (path.stem, "")
        for path, match in zip(files, matches, strict=True)
    ]
    # The official files of one set may all have one name ("vnull"): then their first number counts.
    which = 0 if len({name for name, _ in names}) > 1 else 1
    videos: dict[str, list[Path]] = {}
    for path, name in zip(files, names, strict=True):
        videos.setdefault(name[which], []).append(path)
    if len(videos) == 1 and len(files) > 1 and held_out:
        logger.warning(
            "%s: all %d files are of one video, so none can be kept apart whole. The last %d are held out; "
            "if windows overlap, the validation loss is too good.",
            files[0].parent,
            len(files),
            min(held_out, most_held_out(len(files))),
        )
        videos = {path.name: [path] for path in files}
    kept: list[Path] = []
    groups = list(videos.values())
    for _ in range(most_held_out(len(groups))):
        if len(kept) < held_out:
            kept = groups.pop() + kept
    if 0 < len(kept) < held_out:
        logger.warning(
            "%s: %d of %d files are held out, those of a third of the videos; with data.held_out, %d, too "
            "few were left to train on.",
            files[0].parent,
            len(kept),
            len(files),
            held_out,
        )
    return [path for group in groups for path in group], kept
