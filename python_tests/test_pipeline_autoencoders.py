# SPDX-License-Identifier: Apache-2.0
"""Which autoencoder a text-to-video pipeline decodes with, and in which pieces of a frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import wan_folder
from safetensors.torch import save_file

import ardiff_engine as ade
from ardiff_engine.cli import main
from ardiff_engine.codec import TAEHV, Tiled
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models.pictures import to_uint8
from ardiff_engine.pipeline.memory import video_memory
from ardiff_engine.pipeline.parts import find_parts
from ardiff_engine.pipeline.systems import system_named

SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


def light_file(place: Path, channels: int = 4) -> Path:
    torch.manual_seed(4)
    model = TAEHV(channels)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, place)
    return place


@torch.no_grad()
def decoded(codec: TAEHV | Tiled, latents: torch.Tensor, black: float) -> torch.Tensor:
    video = codec.decoder().push(latents)
    return to_uint8((video - black) / (1 - black))


def test_a_light_autoencoder(folder: Path, tmp_path: Path) -> None:
    """Its own numbers for the pipeline's latents; frame by frame; and as what encodes given pictures."""
    file = light_file(tmp_path / "taehv.safetensors")
    pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing", vae=file)
    assert isinstance(pipe.vae, TAEHV)
    call = {"size": SIZE, "seed": 5}
    out = pipe("a red cat", num_frames=21, progress=False, **call)
    assert out.frames.shape == (1, 21, *SIZE, 3)
    assert torch.equal(out.frames[0], decoded(pipe.vae, out.latents[0], 0.0))
    streamed = [frame.image for frame in pipe.stream("a red cat", num_frames=21, **call)]
    assert torch.equal(torch.stack(streamed), out.frames[0])
    other = ade.Pipeline.from_pretrained(folder, system="self-forcing")
    assert torch.equal(other("a red cat", num_frames=21, progress=False, **call).latents, out.latents)

    given = torch.randint(
        0, 256, (5, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    got = pipe.pixels.encode(given)
    video = given.permute(3, 0, 1, 2)[None] / 255
    with torch.no_grad():
        want = pipe.vae.encode(torch.cat([video[:, :, :1]] * 3 + [video], dim=2))[0].transpose(0, 1)
    assert len(got) == 2 and torch.allclose(got, want, atol=1e-6)


def test_a_light_autoencoder_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    file = light_file(tmp_path / "taehv.safetensors")
    command = ["generate", "--model", str(folder), "--system", "self-forcing", "--prompt", "a red cat"]
    command += ["--size", "32x48", "--frames", "9", "--seed", "5", "--quiet", "--vae", str(file)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing", vae=file)
    want = pipe("a red cat", num_frames=9, size=SIZE, seed=5, progress=False).frames[0]
    assert torch.equal(torch.from_numpy(ade.read_video(tmp_path / "out")), want)


def test_frames_in_tiles(folder: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing", tile=(10, 12))
    out = pipe("a red cat", num_frames=9, size=(96, 160), seed=5, progress=False)
    assert torch.equal(out.frames[0], decoded(Tiled(pipe.vae, (10, 12)), out.latents[0], -1.0))
    whole = ade.Pipeline.from_pretrained(folder, system="self-forcing")
    other = whole("a red cat", num_frames=9, size=(96, 160), seed=5, progress=False)
    assert torch.equal(other.latents, out.latents) and not torch.equal(other.frames, out.frames)


def test_tiles_and_a_light_autoencoder_take_less_memory(folder: Path, tmp_path: Path) -> None:
    def of(**parts: object) -> int:
        found = find_parts(folder, **parts)
        told = video_memory(found, system_named("self-forcing"), size=(480, 832), frames=None)
        return told.decoding

    assert of(tile=(32, 32)) < of() / 5


def test_parts_that_do_not_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, broken = light_file(tmp_path / "other.safetensors", 16), tmp_path / "broken.safetensors"
    save_file({"a": torch.ones(2)}, broken)
    monkeypatch.setattr(
        "ardiff_engine.weights.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("weights")
    )
    with pytest.raises(ConfigError, match="16 channels"):
        ade.Pipeline.from_pretrained(folder, system="self-forcing", vae=other)
    with pytest.raises(CheckpointError, match="conv2"):
        ade.Pipeline.from_pretrained(folder, system="self-forcing", vae=broken)
    with pytest.raises(ConfigError, match="tiles"):
        ade.Pipeline.from_pretrained(folder, system="self-forcing", tile=(8, 8))
