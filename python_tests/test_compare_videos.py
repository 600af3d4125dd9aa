# SPDX-License-Identifier: Apache-2.0
"""Fréchet distances, features of clips, PSNR and SSIM: against scipy, known laws and own formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor

from ardiff_engine.errors import CheckpointError, ConfigError, DataError, TensorError
from ardiff_engine.evaluation import compare as command
from ardiff_engine.evaluation.fidelity import fidelity
from ardiff_engine.evaluation.frechet import compare, frechet_distance
from ardiff_engine.evaluation.video_features import features, find_extractor, firsts, windows
from ardiff_engine.media import export_video


@pytest.mark.parametrize(("vectors", "dimensions"), [(300, 12), (20, 50), (64, 64)])
def test_distance_is_that_of_the_textbook(dice: np.random.Generator, vectors: int, dimensions: int) -> None:
    mixing = dice.normal(size=(dimensions, dimensions))
    one = dice.normal(size=(vectors, dimensions)) @ mixing
    other = dice.normal(0.3, 1.5, size=(vectors, dimensions))
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(first @ second).real
    gap = ((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    expected = gap + np.trace(first + second - 2 * root)
    # A product of covariances that are not of full rank has no exact root in floating point.
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9 if vectors > dimensions else 1e-3)


def test_distance_of_known_laws_and_its_bias(dice: np.random.Generator) -> None:
    one = dice.normal(size=(256, 400))
    found = compare(np.concatenate([one, dice.normal(size=(256, 400))]), dice.normal(size=(256, 400)))
    assert found.distance == pytest.approx(302, rel=0.03) and found.baseline == pytest.approx(302, rel=0.03)
    assert found.vectors == 256 and "256" in str(found)
    wide = dice.normal(1.0, 2.0, size=(200_000, 3))
    assert frechet_distance(dice.normal(size=(200_000, 3)), wide) == pytest.approx(3 + 3, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("real", "made"),
    [((9, 3), (5, 3)), ((10, 4), (5, 3)), ((10,), (5, 3)), ((10, 3), (1, 3))],
    ids=["too few", "dimensions", "no vectors", "one"],
)
def test_sets_that_cannot_be_compared_are_refused(real: tuple[int, ...], made: tuple[int, ...]) -> None:
    with pytest.raises(TensorError, match="features"):
        compare(np.ones(real), np.ones(made))


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TensorError, match="finite"):
        frechet_distance(np.full((4, 2), np.nan), np.ones((4, 2)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six real videos of 9 frames and four made ones of 5, as pictures without loss."""
    base = tmp_path_factory.mktemp("videos")
    for folder, videos, frames in (("real", 6, 9), ("made", 4, 5)):
        (base / folder).mkdir()
        for index in range(videos):
            shape = (frames, 14, 20, 3)
            video = np.random.default_rng(index).integers(0, 256, shape).astype(np.uint8)
            noise = np.random.default_rng(99).integers(-9, 9, shape) if folder == "made" else 0
            noisy = np.clip(video.astype(int) + noise, 0, 255).astype(np.uint8)
            export_video(noisy, base / folder / f"{index}.gif")
    return base / "real", base / "made"


def mean_pixels(clip: Tensor) -> Tensor:
    """[1, 6, frames]: means and deviations of the color planes in every frame."""
    return torch.cat([clip.mean(dim=(-1, -2)), clip.std(dim=(-1, -2))], dim=1)


def test_windows_are_different_and_inside(folders: tuple[Path, Path]) -> None:
    real, made = folders
    chosen = windows(real, 5, 2, 18, seed=0)
    assert len(set(chosen)) == 18 and {first for _, first in chosen} == {0, 2, 4}
    assert windows(real, 5, 2, 18, seed=1) != chosen == windows(real, 5, 2, 18, seed=0)
    with pytest.raises(DataError, match="18 windows"):
        windows(real, 5, 2, 19, seed=0)
    assert [first for _, first in firsts(made, 5, None)] == [0] * 4
    with pytest.raises(DataError, match="4 videos"):
        firsts(made, 5, 5)
    with pytest.raises(DataError, match="5 frames"):
        firsts(made, 6, None)


def test_features_are_of_the_frames_as_the_protocol_resizes_them(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "2.gif"
    seen: list[Tensor] = []

    def look(clip: Tensor) -> Tensor:
        seen.append(clip)
        return mean_pixels(clip)

    found = features(look, [(path, 3)], 4, 8, progress=False)
    assert seen[0].shape == (1, 3, 4, 8, 8) and found.shape == (1, 6)
    with Image.open(path) as image:
        image.seek(5)
        green = np.asarray(image.convert("RGB"))[..., 1].astype(np.float32)
    expected = np.asarray(Image.fromarray(green).resize((8, 8), Image.Resampling.BICUBIC)) / 127.5 - 1
    np.testing.assert_allclose(seen[0][0, 1, 2].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found[0], mean_pixels(seen[0])[0].mean(dim=1).double().numpy(), rtol=1e-6)
    with pytest.raises(TensorError, match="features of"):
        features(lambda clip: clip.sum(), [(path, 0)], 4, 8, progress=False)


def test_torchscript_and_functions_are_found(tmp_path: Path) -> None:
    clip = torch.rand(1, 3, 2, 4, 4)
    file = tmp_path / "network.pt"
    torch.jit.trace(mean_pixels, clip).save(str(file))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(find_extractor(str(file))(clip), mean_pixels(clip))
    assert find_extractor(f"{__name__}:mean_pixels") is mean_pixels
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="TorchScript"):
        find_extractor(str(tmp_path / "broken.pt"))
    with pytest.raises(ConfigError, match="module:function"):
        find_extractor("no_module_of_this_name:f")


def test_psnr_and_ssim_of_known_differences(dice: np.random.Generator) -> None:
    frames = dice.integers(0, 200, (3, 16, 18, 3)).astype(np.uint8)
    off = frames + np.array([5, 10, 20], dtype=np.uint8)[:, None, None, None]
    found = fidelity(off, frames)
    assert found["psnr"] == pytest.approx(np.mean([20 * np.log10(255 / d) for d in (5, 10, 20)]), abs=1e-3)
    assert 0.9 < found["ssim"] < 1 and fidelity(frames, frames)["ssim"] == pytest.approx(1)
    assert fidelity(dice.permutation(frames, axis=1), frames)["ssim"] < 0.3
    with pytest.raises(TensorError, match="videos"):
        fidelity(frames[:2], frames)


def test_the_command_compares_sets_and_pairs(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    real, made = map(str, folders)
    options = ["--frames", "5", "--size", "8", "--features", f"{__name__}:mean_pixels"]
    assert command.main([real, made, *options]) == 0
    out = capsys.readouterr().out
    assert "with 4 vectors on each side" in out and "real against real, as many" in out
    assert command.main([real, real, "--paired"]) == 0
    assert "mean of 6 videos: psnr inf, ssim 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "noun"),
    [
        ([], "--features"),
        (["--lpips", "x"], "--features"),
        (["--features", "a:b"], "a:b"),
        (["--paired"], "videos"),
    ],
)
def test_mistakes_of_the_command(
    folders: tuple[Path, Path], options: list[str], noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real videos are longer than made ones, so that --paired cannot compare them."""
    real, made = map(str, folders)
    assert command.main([real, made, *options]) == 2
    assert noun in capsys.readouterr().err
