# SPDX-License-Identifier: Apache-2.0
"""The official .npy layout, in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.data.latent_files import LatentFiles, latent_file_name, read_latents, write_latents
from ardiff_engine.errors import DataError


def _folder(path: Path, count: int, frames: int = 6, classes: bool = False) -> list[torch.Tensor]:
    written = []
    for index in range(count):
        z = torch.randn(frames, 4, 1, 8)
        write_latents(path / latent_file_name(index, "vnull", class_id=index if classes else None), z)
        written.append(z)
    return written


def test_official_names() -> None:
    assert latent_file_name(3, "vnull") == "0003_00_vnull_.npy"
    assert (
        latent_file_name(12345, "v-Bowling-g01", class_id=15, item=2, rank=1)
        == "12345_02_v-Bowling-g01_classid15_1.npy"
    )


def test_file_is_plain_float32(tmp_path: Path) -> None:
    (z,) = _folder(tmp_path, 1)
    array = np.load(tmp_path / "0000_00_vnull_.npy", allow_pickle=False)
    assert array.dtype == np.float32 and array.shape == (6, 4, 1, 8) and np.array_equal(array, z.numpy())


def test_tokens_are_unit_windows_of_the_files(tmp_path: Path) -> None:
    written = _folder(tmp_path, 3)
    source = LatentFiles(tmp_path, 4, held_out=1)
    tokens, classes = source.latents(range(40))
    assert tokens.shape == (40, 4, 8, 4) and classes is None
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(40, 4, 8))
    windows = [
        torch.nn.functional.normalize(z[s : s + 4, :, 0].transpose(1, 2), dim=-1)
        for z in written[:2]
        for s in range(3)
    ]
    hits = [[torch.allclose(token, window, atol=1e-6) for window in windows] for token in tokens]
    assert all(any(row) for row in hits) and all(any(column) for column in zip(*hits, strict=True))
    held_out, _ = source.held_out().latents(range(5))
    assert all(not torch.allclose(clip, window, atol=1e-3) for clip in held_out for window in windows)


def test_samples_are_pure_functions(tmp_path: Path) -> None:
    _folder(tmp_path, 3)
    source = LatentFiles(tmp_path, 4, held_out=1, seed=5)
    together, _ = source.latents([9, 4])
    alone, _ = source.latents([4])
    assert torch.equal(together[1:], alone)


def test_class_ids_come_from_the_name(tmp_path: Path) -> None:
    _folder(tmp_path, 4, classes=True)
    tokens, classes = LatentFiles(tmp_path, 6, held_out=1).latents(range(30))
    assert classes is not None and set(classes.tolist()) == {0, 1, 2}


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="npy"):
        LatentFiles(tmp_path, 4, held_out=1)
    (tmp_path / "a.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match="a.npy"):
        read_latents(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 8), dtype=np.float32))
    with pytest.raises(DataError, match="a.npy"):
        read_latents(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 1, 8), dtype=np.float32))
    with pytest.raises(DataError, match="3 frames"):
        LatentFiles(tmp_path, 4, held_out=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    array = np.zeros((6, 4, 1, 8), dtype=np.float32)
    array[2, 1, 0, 3] = bad
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="a.npy.*NaN or infinity"):
        read_latents(tmp_path / "a.npy")


def test_files_of_another_size_are_named(tmp_path: Path) -> None:
    _folder(tmp_path, 2)
    np.save(tmp_path / "9999_00_other_.npy", np.ones((6, 4, 1, 5), dtype=np.float32))
    source = LatentFiles(tmp_path, 4, held_out=0)
    assert source.cell == (8, 4)
    with pytest.raises(DataError, match="9999_00_other_.npy.*5 tokens x 4"):
        source.latents(range(20))


def test_names_with_and_without_classes_do_not_mix(tmp_path: Path) -> None:
    _folder(tmp_path, 2, classes=True)
    write_latents(tmp_path / latent_file_name(7, "vnull"), torch.ones(6, 4, 1, 8))
    with pytest.raises(DataError, match="0007_00_vnull_.npy.*classid"):
        LatentFiles(tmp_path, 4, held_out=1)
