# SPDX-License-Identifier: Apache-2.0
"""A steered model in a folder: frames block by block, keys and captions that act; folders of other things."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ardiff_engine.conditions.captions import CaptionEncoder, CaptionEncoderConfig
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError
from ardiff_engine.models.frame_vae import FrameVAE, FrameVAEConfig
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.places import place_channels, with_places
from ardiff_engine.pipeline.steered import CONFIG_FILE, SteeredPipeline, solver_of
from ardiff_engine.weights import save_model

CAPTION = "a red circle moves left"


def write_model(folder: Path) -> Path:
    """Of random weights, in which captions and keys show."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 32, "channels": 4, "out_channels": 4}
    model = WanTransformer(WanConfig(**sizes, text_dim=8, text_tokens=32, frequency_dim=16, actions=4))
    torch.nn.init.normal_(model.action_embedding.weight)
    save_model(model, folder / "transformer")
    save_model(CaptionEncoder(CaptionEncoderConfig(tokens=32, width=8)), folder / "text_encoder")
    save_model(FrameVAE(FrameVAEConfig(image_size=32, channels=4, width=8)), folder / "vae")
    rhythm = {"loss": {"block": 2}, "data": {"num_frames": 6}, "shift": 3.0}
    (folder / CONFIG_FILE).write_text(json.dumps(rhythm))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("steered"))


def video(pipe: SteeredPipeline, frames: int = 8, **options: object) -> torch.Tensor:
    given = {"prompt": CAPTION, "num_frames": frames, "seed": 3, "steps": 2}
    return torch.stack([frame.image for frame in pipe.stream(**given | options)])  # type: ignore[arg-type]


def test_captions_keys_and_seeds_act(folder: Path) -> None:
    pipe = SteeredPipeline.from_pretrained(folder)
    plain = video(pipe)
    assert pipe.fps == 16
    assert plain.shape == (8, 32, 32, 3) and plain.dtype == torch.uint8
    assert torch.equal(video(pipe), plain)
    pressed = video(pipe, action=lambda frame: 2 if frame >= 5 else 0)
    assert torch.equal(pressed[:4], plain[:4]), "a key acts from its block on"
    assert all(not torch.equal(pressed[frame], plain[frame]) for frame in range(4, 8))
    assert torch.equal(video(pipe, guidance_scale=1.0), plain)
    guided = SteeredPipeline(pipe.transformer, pipe.text, pipe.vae, replace(pipe.rhythm, guidance=3.0))
    assert torch.equal(video(guided), video(pipe, guidance_scale=3.0)), "a model may have its own"
    for other in ({"prompt": "a blue square moves up"}, {"seed": 4}, {"guidance_scale": 3.0}):
        assert not torch.equal(video(pipe, **other), plain)


def test_a_model_may_have_fresh_noise_after_each_step(folder: Path) -> None:
    pipe = SteeredPipeline.from_pretrained(folder)
    fresh = SteeredPipeline(pipe.transformer, pipe.text, pipe.vae, replace(pipe.rhythm, solver="renoise"))
    for steps in (1, 2, 3, 4):
        levels = [solver_of(own.rhythm, steps).timesteps for own in (pipe, fresh)]
        assert torch.allclose(*levels), "both at the levels that were learned"
    assert torch.equal(video(fresh, steps=1), video(pipe, steps=1)), "after the last step there is none"
    assert torch.equal(video(fresh), video(fresh)) and not torch.equal(video(fresh), video(pipe))
    with pytest.raises(ConfigError, match="steps"):
        fresh.stream(CAPTION, 6, steps=1001)


def test_places_are_told_beside_the_latents(folder: Path) -> None:
    plain, sizes = SteeredPipeline.from_pretrained(folder), {"channels": 8, "out_channels": 4}
    told = WanTransformer(WanConfig(**plain.transformer.config.to_dict() | sizes))
    weights = plain.transformer.state_dict()
    for strength in (0.0, 0.5):
        seen = weights["patch_embedding.weight"]
        more = torch.nn.init.normal_(torch.empty_like(seen)) * strength
        told.load_state_dict(weights | {"patch_embedding.weight": torch.cat([seen, more], dim=1)})
        pipe = SteeredPipeline(told, plain.text, plain.vae, plain.rhythm)
        assert torch.equal(video(pipe), video(plain)) == (strength == 0)


def test_places_differ_and_are_read_from_the_edges() -> None:
    places = place_channels(4, 3, 5)
    assert places.shape == (4, 3, 5) and places.flatten(1).T.unique(dim=0).shape == (15, 4)
    assert torch.equal(places[2:, 0], place_channels(4, 5, 3)[:2, :, 0]), "across as down"
    assert torch.allclose(places[0, 0], -places[0, -1]) and (places[:2].std(-1) == 0).all()
    latents = torch.randn(2, 6, 4, 3, 5)
    both = with_places(latents, 4)
    assert torch.equal(both[:, :, :4], latents) and torch.equal(both[1, 5, 4:], places)
    assert with_places(latents, 0) is latents


def test_a_new_caption_begins_with_a_cut(folder: Path) -> None:
    pipe = SteeredPipeline.from_pretrained(folder)
    plain, shown, begins = video(pipe, 12), [], 0
    stream = pipe.stream(CAPTION, 12, seed=3, steps=2)
    for frame in stream:
        shown.append(frame.image)
        if frame.index == 1:
            begins = stream.set_prompt("a blue square moves up")
    assert 2 <= begins <= 6 and len(shown) == 12
    assert torch.equal(torch.stack(shown[:2]), plain[:2])
    assert not torch.equal(torch.stack(shown[begins:]), plain[begins:])


def test_an_endless_stream_asks_for_keys_as_late_as_it_can(folder: Path) -> None:
    asked: list[int] = []
    stream = SteeredPipeline.from_pretrained(folder).stream(
        CAPTION, steps=2, action=lambda frame: asked.append(frame) or 0
    )
    for _ in range(9):
        frame = next(stream)
        assert max(asked) <= frame.index + 6, "keys of far frames are not asked for yet"
    stream.close()
    assert sorted(set(asked)) == list(range(max(asked) + 1))


def test_arguments_that_do_not_fit(folder: Path) -> None:
    pipe = SteeredPipeline.from_pretrained(folder)
    for wrong in (
        {"num_frames": 3},
        {"prompt": "x" * 10_000},
        {"prompt": 3},
        {"steps": 0},
        {"steps": True},
        {"num_frames": 0},
        {"action": lambda frame: 5},
    ):
        with pytest.raises(ArdiffError):
            video(pipe, **wrong)
    assert video(pipe, prompt="").shape == video(pipe, prompt="日本語 ✓").shape == (8, 32, 32, 3)


def test_folders_of_other_things(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="steered"):
        SteeredPipeline.from_pretrained("moving-digits")
    with pytest.raises(CheckpointError, match="steered"):
        SteeredPipeline.from_pretrained(tmp_path)
    broken = write_model(tmp_path / "broken")
    given = json.loads((folder / CONFIG_FILE).read_text())
    wrong = (
        {"guidance": 0},
        {"solver": "ddim"},
        {"loss": {"block": 9}},
        {"data": {"num_frames": 6, "fps": -1.0}},
        {"data": []},
        {"data": 3},
    )
    for text in ("{}", "[]", *(json.dumps(given | other) for other in wrong)):
        (broken / CONFIG_FILE).write_text(text)
        with pytest.raises(CheckpointError):
            SteeredPipeline.from_pretrained(broken)
    (folder / "captions.json").write_text('["a", 3]')
    with pytest.raises(CheckpointError, match="texts"):
        SteeredPipeline.from_pretrained(folder)
    (folder / "captions.json").unlink()
    swapped = write_model(tmp_path / "swapped")
    save_model(CaptionEncoder(), swapped / "vae")
    with pytest.raises(CheckpointError, match="FrameVAE"):
        SteeredPipeline.from_pretrained(swapped)
    other = write_model(tmp_path / "other")
    save_model(CaptionEncoder(CaptionEncoderConfig(tokens=16, width=8)), other / "text_encoder")
    with pytest.raises(ConfigError, match="text"):
        SteeredPipeline.from_pretrained(other)
