# SPDX-License-Identifier: Apache-2.0
"""Text to video against diffusers' own pipelines, on folders that diffusers wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import wan_folder
from helpers.video_pipelines import CALL, PROMPTS, SIZE, clip
from PIL import Image
from safetensors.torch import save_file

import ardiff_engine as ade
from ardiff_engine import systems
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError
from ardiff_engine.models.wan import WanExperts
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.plan import blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_the_bidirectional_system_is_diffusers_own_pipeline(folder: Path) -> None:
    """Same folder, prompts, starting noise, scheduler and steps."""
    ours = ade.Pipeline.from_pretrained(folder, system="wan")
    theirs = wan_folder.wan_pipeline()
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    got = ours(
        PROMPTS,
        num_frames=9,
        size=SIZE,
        negative_prompt="on the beach",
        guidance_scale=4.0,
        num_inference_steps=12,
        latents=noise.transpose(1, 2),
        progress=False,
    )
    options = {
        "prompt": PROMPTS,
        "negative_prompt": "on the beach",
        "guidance_scale": 4.0,
        "num_inference_steps": 12,
        "height": SIZE[0],
        "width": SIZE[1],
        "num_frames": 9,
    }
    want = theirs(**options, latents=noise.clone(), output_type="latent").frames.transpose(1, 2)
    assert float((got.latents - want).norm() / want.norm()) <= 1e-4
    pictures = theirs(**options, latents=noise.clone(), output_type="np").frames
    assert np.abs(got.frames.numpy() / 255 - pictures).max() <= 1 / 255


@pytest.mark.parametrize(
    ("system", "options"),
    [
        (systems.get("skyreels-v2"), {"ar_step": 5}),
        (replace(systems.get("skyreels-v2"), plan=blocks(1, lag=0)), {"ar_step": 0}),
        (
            replace(systems.get("skyreels-v2-causal"), plan=blocks(2, lag=2), num_frames=6),
            {"ar_step": 2, "causal_block_size": 2},
        ),
    ],
    ids=["asynchronous", "together", "causal blocks"],
)
def test_skyreels_is_diffusers_own_pipeline(tmp_path: Path, system: systems.System, options: dict) -> None:
    """Also where finished blocks are fed once, and in every pass there."""
    theirs = wan_folder.skyreels_pipeline()
    theirs.save_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    call = {
        "negative_prompt": "on the beach",
        "guidance_scale": 4.0,
        "num_inference_steps": 8,
        "num_frames": 21,
    }
    noise = torch.randn(1, 4, 6, 4, 6, generator=torch.Generator().manual_seed(1))
    want = theirs(
        PROMPTS[0],
        **call,
        **options,
        height=SIZE[0],
        width=SIZE[1],
        base_num_frames=21,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).frames.transpose(1, 2)
    ours = ade.Pipeline.from_pretrained(tmp_path, system=system)
    got = ours(PROMPTS[0], **call, size=SIZE, latents=noise.transpose(1, 2), progress=False)
    assert float((got.latents - want).norm() / want.norm()) <= 1e-4


def test_an_image_to_video_model_is_diffusers_own_pipeline(copy: Path) -> None:
    transformer = wan_folder.transformer(in_channels=12)
    shutil.rmtree(copy / "transformer")
    transformer.save_pretrained(copy / "transformer")
    theirs = wan_folder.image_pipeline(transformer)
    ours = ade.Pipeline.from_pretrained(copy, system="wan")
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    picture = Image.fromarray(clip(1)[0].numpy())
    options = {
        "negative_prompt": "the beach",
        "guidance_scale": 3.0,
        "num_inference_steps": 5,
        "num_frames": 9,
    }
    got = ours(
        "a cat", image=picture, size=SIZE, latents=noise.transpose(1, 2), progress=False, **options
    ).latents
    want = theirs(
        picture,
        "a cat",
        height=SIZE[0],
        width=SIZE[1],
        latents=noise.clone(),
        output_type="latent",
        **options,
    ).frames.transpose(1, 2)
    assert float((got - want).norm() / want.norm()) <= 1e-4
    causal = ade.Pipeline.from_pretrained(copy, system="self-forcing")
    out = causal(PROMPTS, image=picture, **CALL)
    assert torch.equal(causal(PROMPTS[0], image=picture, **CALL).frames[0], out.frames[0])
    for given in ({}, {"video": clip(5)}):
        with pytest.raises(ConfigError, match="image-to-video"):
            causal("a cat", **CALL, **given)


def test_an_endless_video_from_a_picture(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the picture the model is told grey, whose latents are soon all the same: as in a whole clip."""
    shutil.rmtree(copy / "transformer")
    wan_folder.transformer(in_channels=12).save_pretrained(copy / "transformer")
    pipe, picture = ade.Pipeline.from_pretrained(copy, system="self-forcing"), clip(1)[0]
    with pytest.raises(ConfigError, match="image="):
        pipe.stream("a cat", None, size=SIZE)
    finite = pipe("a cat", image=picture, **CALL | {"num_frames": 177})
    frames = pipe.stream("a cat", None, image=picture, size=SIZE, seed=0)
    made = torch.stack([next(frames).image for _ in range(177)])
    frames.close()
    assert torch.equal(made, finite.frames[0])

    whole = torch.full((1, 3, 177, *SIZE), 0.0)
    whole[0, :, 0] = picture.permute(2, 0, 1) / 127.5 - 1
    want = pipe.vae.encode(whole)[0].transpose(0, 1)
    beside = pipe.pixels.beside(picture)
    got = torch.stack([beside(frame) for frame in range(45)])
    assert torch.equal(got[:, 4:], want)
    assert got[0, :4].eq(1).all() and not got[1:, :4].any()
    monkeypatch.setattr("ardiff_engine.codec.video.VideoEncoder.push", lambda *_: pytest.fail("encoded"))
    assert torch.equal(beside(10**6), got[-1])


def test_clips_view_of_a_picture_is_diffusers_own_pipeline(tmp_path: Path) -> None:
    """Wan 2.1's image-to-video model, from its folder: with image_encoder/ and image_processor/."""
    transformer = wan_folder.transformer(in_channels=12, image_dim=8, added_kv_proj_dim=24)
    clip_parts = {
        "image_encoder": wan_folder.image_encoder(),
        "image_processor": wan_folder.image_processor(),
    }
    theirs = wan_folder.image_pipeline(transformer, **clip_parts)
    theirs.save_pretrained(tmp_path)
    ours = ade.Pipeline.from_pretrained(tmp_path, system="wan")
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    options = {"guidance_scale": 3.0, "num_inference_steps": 5, "num_frames": 9}
    made = []
    for picture in (clip(1)[0], 255 - clip(1)[0]):
        got = ours(
            "a cat",
            image=picture,
            negative_prompt="dog",
            size=SIZE,
            latents=noise.transpose(1, 2),
            progress=False,
            **options,
        ).latents
        want = theirs(
            Image.fromarray(picture.numpy()),
            "a cat",
            negative_prompt="dog",
            height=SIZE[0],
            width=SIZE[1],
            latents=noise.clone(),
            output_type="latent",
            **options,
        ).frames.transpose(1, 2)
        assert float((got - want).norm() / want.norm()) <= 1e-4
        made.append(got)
    assert not torch.allclose(*made, atol=1e-2)
    # What CLIP sees matters by itself: the same latents beside, other tokens.
    see = ours._see.tokens
    ours._see.tokens = lambda picture: see(255 - picture)
    options |= {"image": clip(1)[0], "negative_prompt": "dog", "size": SIZE, "progress": False}
    other = ours("a cat", latents=noise.transpose(1, 2), **options).latents
    assert not torch.allclose(other, made[0], atol=1e-3)
    ours._see.tokens = see
    pair = ours(PROMPTS, seed=3, **options)
    assert torch.equal(ours(PROMPTS[1], seed=3, first_video=1, **options).latents[0], pair.latents[1])
    with pytest.raises(ConfigError, match="see="):
        TextToVideoPipeline(ours.transformer, ours.vae, "wan")("a cat", **CALL, image=clip(1)[0])


def test_a_clean_first_frame_is_diffusers_own_pipeline(tmp_path: Path) -> None:
    """Wan 2.2's TI2V: the picture is the first latent frame, at timestep 0 in every pass."""
    theirs = wan_folder.image_pipeline(
        wan_folder.transformer(), vae=wan_folder.vae_22(), expand_timesteps=True
    )
    theirs.save_pretrained(tmp_path)
    ours = ade.Pipeline.from_pretrained(tmp_path, system="wan")
    size = (64, 96)
    noise = torch.randn(1, 4, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    options = {"guidance_scale": 3.0, "num_inference_steps": 6, "num_frames": 13, "negative_prompt": "dog"}
    pictures = clip(2, *size)
    for picture in pictures:
        own = noise.transpose(1, 2)[:, 1:]
        got = ours("a cat", image=picture, size=size, latents=own, progress=False, **options)
        want = theirs(
            Image.fromarray(picture.numpy()),
            "a cat",
            height=size[0],
            width=size[1],
            latents=noise.clone(),
            output_type="latent",
            **options,
        ).frames.transpose(1, 2)
        assert float((got.latents - want).norm() / want.norm()) <= 1e-4
        assert got.frames.shape == (1, 13, *size, 3) and torch.equal(got.frames[0, 0], picture)
    options |= {"size": size, "seed": 3, "progress": False}
    seen = [ours(PROMPTS, image=picture, **options).latents for picture in pictures]
    assert not torch.allclose(seen[0][:, 1:], seen[1][:, 1:], atol=1e-3)
    alone = ours(PROMPTS[1], image=pictures[0], first_video=1, **options).latents
    assert torch.equal(alone[0], seen[0][1])
    with pytest.raises(ConfigError, match="one picture"):
        ours("a cat", video=clip(5, *size), **options)
    with pytest.raises(ArdiffError):
        ours.stream("a cat", None, image=pictures[0], size=size)


def test_two_experts_are_diffusers_own_pipeline(tmp_path: Path) -> None:
    """Wan 2.2's A14B: a transformer for high noise and one for low, chosen by the timestep."""
    experts = {"transformer_2": wan_folder.transformer(seed=7), "boundary_ratio": 0.875}
    theirs = wan_folder.wan_pipeline(**experts)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path)
    ours = ade.Pipeline.from_pretrained(tmp_path, system="wan")
    assert isinstance(ours.transformer, WanExperts) and ours.transformer.boundary == 875
    noise = torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    steps = {"guidance_scale": 4.0, "num_inference_steps": 8, "num_frames": 9, "negative_prompt": "dog"}
    got = ours(PROMPTS, size=SIZE, latents=noise.transpose(1, 2), progress=False, **steps).latents
    sizes = {"height": SIZE[0], "width": SIZE[1], "output_type": "latent"}
    want = theirs(PROMPTS, latents=noise.clone(), **sizes, **steps).frames.transpose(1, 2)
    assert 0 < int((theirs.scheduler.timesteps >= 875).sum()) < 8
    assert float((got - want).norm() / want.norm()) <= 1e-4
    # Streams that join later stand on the other side of the boundary: to the bit as they are alone.
    parts = [ours.prompts.encode(prompt) for prompt in PROMPTS]
    solver = ade.solvers.UniPC(ade.FlowSchedule(3.0), 8)

    def asked(number: int) -> ade.Request:
        return ade.Request(
            num_frames=3, size=(4, 6), seed=number, condition=parts[number], plan=ours.system.plan
        )

    def engine() -> ade.Engine:
        memory = ours.system.memory
        return ade.Engine(ours.transformer, solver=solver, memory=memory, max_pages=100)

    alone = [engine().submit(asked(number)).result() for number in range(2)]
    together = engine()
    first = together.submit(asked(0))
    together.step(5)
    second = together.submit(asked(1))
    assert torch.equal(second.result(), alone[1]) and torch.equal(first.result(), alone[0])
    with pytest.raises(ConfigError, match="two transformers"):
        ade.Pipeline.from_pretrained(tmp_path, system="self-forcing")
    few = CALL | {"num_frames": 9, "num_inference_steps": 3, "guidance_scale_2": 4.0}
    assert torch.equal(ours(PROMPTS[1], first_video=1, **few).latents[0], ours(PROMPTS, **few).latents[1])
    # Another guidance scale, and a LoRA, for each.
    got = ours(
        PROMPTS, size=SIZE, latents=noise.transpose(1, 2), progress=False, guidance_scale_2=2.5, **steps
    ).latents
    want = theirs(PROMPTS, latents=noise.clone(), guidance_scale_2=2.5, **sizes, **steps)
    want = want.frames.transpose(1, 2)
    assert float((got - want).norm() / want.norm()) <= 1e-4
    with pytest.raises(ConfigError, match="lora"):
        ade.Pipeline.from_pretrained(tmp_path, system="wan", lora=tmp_path / "any.safetensors")
    name = "blocks.1.ffn.0"
    for number, expert in enumerate((ours.transformer.high, ours.transformer.low)):
        pair = {f"{name}.lora_A.weight": torch.randn(2, 24), f"{name}.lora_B.weight": torch.randn(48, 2)}
        save_file(pair, tmp_path / f"lora{number}.safetensors")
        with torch.no_grad():
            expert.get_submodule(name).weight += pair[f"{name}.lora_B.weight"] @ pair[f"{name}.lora_A.weight"]
    files = [tmp_path / f"lora{number}.safetensors" for number in range(2)]
    merged = ade.Pipeline.from_pretrained(tmp_path, system="wan", lora=files).transformer
    for got, want in zip(merged.parameters(), ours.transformer.parameters(), strict=True):
        torch.testing.assert_close(got, want)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": None}))
    with pytest.raises(CheckpointError, match="boundary_ratio"):
        ade.Pipeline.from_pretrained(tmp_path, system="wan")


def test_two_experts_from_a_picture_are_diffusers_own_pipeline(tmp_path: Path) -> None:
    """Wan 2.2's A14B from a first picture: channels beside the latents, and no CLIP."""
    experts = {"transformer_2": wan_folder.transformer(in_channels=12, seed=7), "boundary_ratio": 0.9}
    theirs = wan_folder.image_pipeline(wan_folder.transformer(in_channels=12), **experts)
    theirs.save_pretrained(tmp_path)
    ours = ade.Pipeline.from_pretrained(tmp_path, system="wan")
    assert isinstance(ours.transformer, WanExperts) and ours.transformer.config.image_dim is None
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    picture = clip(1)[0]
    options = {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "num_inference_steps": 8, "num_frames": 9}
    options["negative_prompt"] = "dog"
    own = noise.transpose(1, 2)
    got = ours("a cat", image=picture, size=SIZE, latents=own, progress=False, **options).latents
    want = theirs(
        Image.fromarray(picture.numpy()),
        "a cat",
        height=SIZE[0],
        width=SIZE[1],
        latents=noise.clone(),
        output_type="latent",
        **options,
    ).frames.transpose(1, 2)
    assert 0 < int((theirs.scheduler.timesteps >= 900).sum()) < 8
    assert float((got - want).norm() / want.norm()) <= 1e-4
