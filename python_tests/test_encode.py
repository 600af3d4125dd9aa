# SPDX-License-Identifier: Apache-2.0
"""Latents on disk: official layout, equal to the model's, resumable."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_training import write_config
from media_files import shades, write_changing_film, write_film

from ardiff_engine.data.clips import to_images
from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.encoded_clips import CachedClips, EncodedClips
from ardiff_engine.data.latent_files import LatentFiles, read_latents
from ardiff_engine.data.sources import clip_source
from ardiff_engine.errors import CheckpointError, ConfigError, MediaError
from ardiff_engine.media import export_video
from ardiff_engine.media.crop import resize_and_crop
from ardiff_engine.models import TiTok, TiTokConfig
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.settings import build
from ardiff_engine.training.config import EncodeConfig, TrainConfig
from ardiff_engine.training.encode import SETTINGS_FILE, encode, run_encode
from ardiff_engine.training.read_config import read_config
from ardiff_engine.training.trainer import Trainer
from ardiff_engine.weights import save_model

FOLDERS = {"vae": "vae", "videos": "videos", "output": "latents"}


@pytest.fixture(scope="module")
def vae() -> TiTok:
    torch.manual_seed(0)
    sizes = {
        "image_size": 8,
        "patch_size": 2,
        "num_latent_tokens": 4,
        "codebook_logits": 8,
        "quantized_channels": 8,
    }
    widths = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("width", 8), ("layers", 1), ("heads", 2))
    }
    return TiTok(
        TiTokConfig(
            hidden_channels=4, channel_multipliers=(1, 1), res_blocks=1, norm_groups=4, **sizes, **widths
        )
    ).eval()


def _videos(folder: Path) -> np.ndarray:
    folder.mkdir()
    return _video(folder / "a_b.gif")


def _video(path: Path) -> np.ndarray:
    video = np.random.default_rng(0).integers(0, 255, (11, 8, 8, 3), dtype=np.uint8)
    export_video(video, path, fps=5)
    return video


def test_windows_names_and_values(tmp_path: Path, vae: TiTok) -> None:
    from ardiff_engine.media import read_video

    _videos(tmp_path / "videos")
    save_model(vae, tmp_path / "vae")
    config = EncodeConfig(
        str(tmp_path / "vae"), str(tmp_path / "videos"), str(tmp_path / "latents"), num_frames=4, stride=3
    )
    folder = encode(config)
    names = sorted(path.name for path in folder.glob("*.npy"))
    assert names == ["0000_00_a-b_.npy", "0000_01_a-b_.npy", "0000_02_a-b_.npy"]
    clip = resize_and_crop(to_images(np.asarray(read_video(tmp_path / "videos" / "a_b.gif"))[3:7]), 8)
    with torch.no_grad():
        wanted = vae.encode(clip[None])[0]
    array = read_latents(folder / names[1])
    assert array.shape == (4, 4, 1, 4) and np.allclose(array, wanted.numpy(), atol=1e-6)


def test_latents_that_hardly_vary_are_said(
    tmp_path: Path, vae: TiTok, caplog: pytest.LogCaptureFixture
) -> None:
    _videos(tmp_path / "videos")
    collapsed = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in collapsed.encoder.patch_embed.parameters():
            parameter.mul_(1e-5)
    save_model(collapsed, tmp_path / "vae")
    encode(EncodeConfig(*(str(tmp_path / name) for name in ("vae", "videos", "latents")), num_frames=4))
    assert "hardly tells them apart" in caplog.text


def test_existing_files_are_kept(tmp_path: Path, vae: TiTok) -> None:
    _videos(tmp_path / "videos")
    save_model(vae, tmp_path / "vae")
    toml = tmp_path / "encode.toml"
    folders = "".join(f'{name} = "{tmp_path}/{folder}"\n' for name, folder in FOLDERS.items())
    toml.write_text(folders + "num_frames = 4\n")
    folder = run_encode(toml)
    (path,) = folder.glob("*.npy")
    path.write_bytes(b"mine")
    run_encode(toml)
    assert path.read_bytes() == b"mine"


FULL_DISK = """
import resource, signal, sys
from ardiff_engine.errors import CheckpointError
from ardiff_engine.training.config import EncodeConfig
from ardiff_engine.training.encode import encode
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
try:
    encode(EncodeConfig(*sys.argv[1:4], num_frames=int(sys.argv[4])))
except CheckpointError as error:
    print("typed:", error)
"""


def test_a_full_disk_is_a_typed_error_and_leaves_no_half_file(tmp_path: Path, vae: TiTok) -> None:
    """The note of settings (fewer than 400 bytes) still fits, a window of 11 frames does not."""
    _videos(tmp_path / "videos")
    save_model(vae, tmp_path / "vae")
    folders = [str(tmp_path / name) for name in FOLDERS.values()]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *folders, "11"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"^typed: writing .*0000_00_a-b_.npy: got File too large", done.stdout), done.stderr
    assert [path.name for path in (tmp_path / "latents").iterdir()] == [SETTINGS_FILE]
    encode(EncodeConfig(*folders, num_frames=11))
    assert read_latents(tmp_path / "latents" / "0000_00_a-b_.npy").shape == (11, 4, 1, 4)


def test_a_folder_of_other_latents_is_refused(tmp_path: Path, vae: TiTok) -> None:
    _videos(tmp_path / "videos")
    save_model(vae, tmp_path / "vae")
    config = EncodeConfig(*(str(tmp_path / name) for name in ("vae", "videos", "latents")), num_frames=4)
    folder = encode(config)
    with pytest.raises(ConfigError, match="stride"):
        encode(replace(config, stride=7))
    torch.manual_seed(1)
    other = TiTok(vae.config)
    save_model(other, tmp_path / "other")
    with pytest.raises(ConfigError, match="vae"):
        encode(replace(config, vae=str(tmp_path / "other")))
    _video(tmp_path / "videos" / "a.gif")
    with pytest.raises(ConfigError, match="videos"):
        encode(config)
    (tmp_path / "videos" / "a.gif").unlink()
    assert encode(config) == folder
    (folder / SETTINGS_FILE).unlink()
    with pytest.raises(ConfigError, match="no note"):
        encode(config)


def test_classes_of_video_names_are_kept(tmp_path: Path, vae: TiTok) -> None:
    (tmp_path / "videos" / "sub_one").mkdir(parents=True)
    _video(tmp_path / "videos" / "sub_one" / "v_x_classid7.gif")
    save_model(vae, tmp_path / "vae")
    folder = encode(
        EncodeConfig(*(str(tmp_path / name) for name in ("vae", "videos", "latents")), num_frames=4)
    )
    assert [path.name for path in folder.glob("*.npy")] == ["0000_00_sub-one-v-x_classid7_.npy"]
    _, classes = LatentFiles(folder, 4, held_out=1).latents(range(3))
    assert classes is not None and classes.tolist() == [7, 7, 7]


def test_nothing_long_enough(tmp_path: Path, vae: TiTok) -> None:
    _videos(tmp_path / "videos")
    save_model(vae, tmp_path / "vae")
    with pytest.raises(MediaError, match="num_frames"):
        encode(
            EncodeConfig(
                str(tmp_path / "vae"), str(tmp_path / "videos"), str(tmp_path / "out"), num_frames=40
            )
        )


def test_cached_clips_are_windows_of_encoded_clips_and_kept(tmp_path: Path, vae: TiTok) -> None:
    data = build(DataConfig, {"num_frames": 6, "digits": {"canvas": 8, "digit_size": 4}}, "data.")
    clips = EncodedClips(clip_source(data, 8), vae)
    whole, labels = clips.latents(range(5))
    cache = CachedClips(clips, 5, 4, seed=0, path=tmp_path / "cache.safetensors")
    tokens, classes = cache.latents(range(30))
    assert labels is not None and classes is not None
    for clip, label in zip(tokens, classes, strict=True):
        fits = [
            torch.equal(clip, whole[i, s : s + 4]) and int(labels[i]) == int(label)
            for i in range(5)
            for s in range(3)
        ]
        assert any(fits)
    before = (tmp_path / "cache.safetensors").stat().st_mtime_ns
    again = CachedClips(clips, 5, 4, seed=0, path=tmp_path / "cache.safetensors")
    assert (
        torch.equal(again.tokens, cache.tokens)
        and (tmp_path / "cache.safetensors").stat().st_mtime_ns == before
    )
    CachedClips(clips, 4, 4, seed=0, path=tmp_path / "cache.safetensors")
    assert (tmp_path / "cache.safetensors").stat().st_mtime_ns != before
    held_out, _ = cache.held_out().latents(range(2))
    assert held_out.shape == (2, 4, 4, 4)


def test_a_frame_vae_is_told_from_a_titok_and_what_it_is_for(tmp_path: Path) -> None:
    """`weights.load_model` was named, which no command takes."""
    save_model(FrameVAE(FrameVAEConfig(image_size=8, channels=4, width=8)).eval(), tmp_path / "vae")
    folders = {name: str(tmp_path / folder) for name, folder in FOLDERS.items()}
    write_film(tmp_path / "videos.mp4", np.zeros((2, 8, 8, 3), np.uint8))
    folders["videos"] = str(tmp_path)
    with pytest.raises(ConfigError, match="a frame_vae.*'wan'"):
        encode(EncodeConfig(**folders))
    with pytest.raises(ConfigError, match="a frame_vae.*'wan'"):
        Trainer(read_config(TrainConfig, write_config(tmp_path), [f"vae={json.dumps(folders['vae'])}"]))


def test_clips_of_another_world_are_encoded_anew(tmp_path: Path, vae: TiTok) -> None:
    """`data.shapes` was not asked about."""
    save_model(vae, tmp_path / "vae")
    changes = [f"vae={json.dumps(str(tmp_path / 'vae'))}", 'data.source="moving_shapes"', "data.clips=1",
        "data.clip_frames=4", "data.shapes.canvas=8", "data.shapes.min_radius=1.0",
        "data.shapes.max_radius=2.0", "data.shapes.min_speed=1.0", "data.shapes.max_speed=2.0"]  # fmt: skip
    tokens = []
    for seed in (1, 2):
        world = [*changes, f"data.shapes.seed={seed}"]
        source = Trainer(read_config(TrainConfig, write_config(tmp_path), world)).source
        assert isinstance(source, CachedClips)
        tokens.append(source.tokens)
    assert not torch.equal(*tokens)


@pytest.mark.parametrize("damage", ["cut", "junk", "folder"])
def test_a_damaged_cache_is_written_anew(tmp_path: Path, vae: TiTok, damage: str) -> None:
    data = build(DataConfig, {"num_frames": 4, "digits": {"canvas": 8, "digit_size": 4}}, "data.")
    clips, path = EncodedClips(clip_source(data, 8), vae), tmp_path / "cache.safetensors"
    if damage == "folder":
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(CheckpointError, match="file"):
            CachedClips(clips, 2, 4, seed=0, path=tmp_path / "file" / "cache.safetensors")
        return
    first = CachedClips(clips, 2, 4, seed=0, path=path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if damage == "cut" else b"junk")
    assert torch.equal(CachedClips(clips, 2, 4, seed=0, path=path).tokens, first.tokens)
    assert len(path.read_bytes()) == len(whole)  # its header lists names in any order


def test_films_are_encoded_at_a_rate_and_up_to_their_damage(
    tmp_path: Path, vae: TiTok, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "videos").mkdir()
    write_film(tmp_path / "videos" / "a.mp4", shades(24), rate=12)
    write_changing_film(tmp_path / "videos" / "b.mkv", [(64, 96)] * 9 + [(96, 64)] * 9)
    (tmp_path / "videos" / "c.mp4").write_bytes(b"no film")
    save_model(vae, tmp_path / "vae")
    folders = [str(tmp_path / name) for name in ("vae", "videos", "latents")]
    config = EncodeConfig(*folders, num_frames=4, stride=2)
    names = sorted(path.name for path in encode(config).glob("*.npy"))
    # 24 frames hold 11 windows of 4 that are 2 apart; the 9 before the change hold 3.
    assert [name[:4] for name in names] == ["0000"] * 11 + ["0001"] * 3
    assert sum("b.mkv" in record.getMessage() for record in caplog.records) == 1
    assert sum("c.mp4" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ConfigError, match="fps"):
        encode(replace(config, fps=6.0))
    slower = encode(replace(config, fps=6.0, output=str(tmp_path / "slower")))
    assert len(list(slower.glob("0000*.npy"))) == 5
