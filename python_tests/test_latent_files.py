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


def _of_videos(path: Path, videos: int, windows: int) -> None:
    for index in range(videos):
        for item in range(windows):
            write_latents(path / latent_file_name(index, f"film{index}", item=item), torch.randn(4, 4, 1, 2))


def test_no_video_is_trained_on_and_held_out(tmp_path: Path) -> None:
    """`_100_` sorts before `_99_`: held-out files were windows from the middle of a film."""
    _of_videos(tmp_path, 3, 102)
    source = LatentFiles(tmp_path, 4, held_out=64)
    films = [{file.name.split("_")[2] for file in part.files} for part in (source, source.held_out())]
    assert films == [{"film0", "film1"}, {"film2"}]


def test_most_videos_are_trained_on_whatever_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _of_videos(tmp_path, 6, 1)
    source = LatentFiles(tmp_path, 4, held_out=64)
    assert (len(source.files), len(source.held_out().files)) == (4, 2)
    assert "2 of 6 files are held out" in caplog.text


def test_windows_of_one_video_overlap_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _of_videos(tmp_path, 1, 102)
    held_out = LatentFiles(tmp_path, 4, held_out=3).held_out()
    assert [file.name[5:8] for file in held_out.files] == ["99_", "100", "101"]
    assert "one video" in caplog.text


def test_every_file_is_drawn_once_before_one_is_drawn_again(tmp_path: Path) -> None:
    written = _folder(tmp_path, 7, frames=4)
    source = LatentFiles(tmp_path, 4, held_out=0, seed=3)
    clean = torch.stack([torch.nn.functional.normalize(z[:, :, 0].transpose(1, 2), dim=-1) for z in written])

    def drawn(samples: range) -> list[int]:
        tokens, _ = source.latents(samples)
        return [int((clean - clip).abs().flatten(1).sum(1).argmin()) for clip in tokens]

    epochs = [drawn(range(7 * epoch, 7 * epoch + 7)) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert drawn(range(5, 9)) == (epochs[0] + epochs[1])[5:9]


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
    np.save(tmp_path / "a.npy", np.ones((3, 4, 1, 8), dtype=np.float32))
    with pytest.raises(DataError, match="3 frames"):
        LatentFiles(tmp_path, 4, held_out=1)


@pytest.mark.parametrize("dtype", ["<f8", "<f4", ">f4", "<f2"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300, 1e39, 1e30, 1e16, 0.0, 1e-30, 1e-300])
def test_a_token_that_cannot_be_normalised_is_refused(tmp_path: Path, bad: float, dtype: str) -> None:
    array = np.ones((6, 4, 1, 8))
    array[2, :, 0, 3] = bad
    with np.errstate(over="ignore", under="ignore"):
        np.save(tmp_path / "a.npy", array.astype(dtype))
    with pytest.raises(DataError, match="a.npy.*token"):
        read_latents(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_floats_and_orders_are_read(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.arange(1.0, 1 + 6 * 4 * 8).reshape(6, 4, 1, 8)
    np.save(tmp_path / "a.npy", np.array(array, dtype=dtype, order=order))  # type: ignore[call-overload]
    read = read_latents(tmp_path / "a.npy")
    assert read.dtype == np.float32 and np.array_equal(read, array)


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    encoded = text.encode() + b"\n"
    return b"\x93NUMPY" + version + len(encoded).to_bytes(2, "little") + encoded


def described(shape: object, dtype: str = "<f4", order: bool = False) -> bytes:
    return header(f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}}}")


HOSTILE = {
    "nothing": b"",
    "text": b"hello",
    "only a magic": b"\x93NUMPY",
    "another version": header("{}", b"\x09\x00"),
    "a huge claim": described((10**12, 4, 1, 8)) + bytes(128),
    "more than 64 bits": described((10**30, 4, 1, 8)) + bytes(128),
    "negative sizes": described((-2, 4, 1, -2)) + bytes(64),
    "no sizes": described((0, 4, 1, 8)),
    "too short": described((2, 4, 1, 8)) + bytes(255),
    "too long": described((2, 4, 1, 8)) + bytes(257),
    "five dimensions": described((2, 4, 1, 8, 1)) + bytes(256),
    "whole numbers": described((2, 4, 1, 8), "<i4") + bytes(256),
    "objects": described((2, 4, 1, 8), "|O") + bytes(512),
    "complex": described((2, 4, 1, 8), "<c8") + bytes(512),
    "a nested header": header("(" * 9000),
    "a header that is code": header("__import__('os').system('true')"),
    "a long header": header("{}" + " " * 60000),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_else_a_file_holds_is_one_error_that_names_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.npy").write_bytes(HOSTILE[kind])
    with pytest.raises(DataError, match="a.npy"):
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
