# SPDX-License-Identifier: Apache-2.0
"""Text to video from a folder that diffusers wrote: the whole path, and what it refuses before it loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import wan_folder
from PIL import Image
from safetensors.torch import load_file, save_file

import ardiff_engine as ade
from ardiff_engine import systems
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError, PlanError, TensorError
from ardiff_engine.models.wan import WanExperts
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.plan import blocks

SIZE = (32, 48)
CALL = {"num_frames": 21, "size": SIZE, "seed": 0, "progress": False}
PROMPTS = ["a red cat walks", "blue dog on the beach"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToVideoPipeline:
    return ade.Pipeline.from_pretrained(folder, system="self-forcing")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def clip(frames: int, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator).to(torch.uint8)


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
    with pytest.raises(ConfigError, match="image-to-video"):
        causal.stream("a cat", None, image=picture, size=SIZE)


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


def test_shapes_and_that_prompts_matter(pipe: TextToVideoPipeline) -> None:
    out = pipe(PROMPTS, **CALL)
    assert out.frames.shape == (2, 21, *SIZE, 3) and out.frames.dtype == torch.uint8
    assert out.latents.shape == (2, 6, 4, 4, 6) and out.fps == 16
    same_noise = [pipe(prompt, **CALL).latents for prompt in PROMPTS]
    assert not torch.allclose(*same_noise)
    assert "self-forcing" in repr(pipe)


@pytest.mark.parametrize("system", ["self-forcing", "longlive", "wan"])
def test_a_video_of_a_batch_comes_out_again_alone(folder: Path, system: str) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system=system)
    options = CALL | ({"num_inference_steps": 3} if system == "wan" else {})
    batch = pipe(PROMPTS, **options | {"first_video": 3})
    for k, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, **options | {"seed": batch.seed, "first_video": batch.first_video + k})
        assert torch.equal(alone.latents[0], batch.latents[k])
        assert torch.equal(alone.frames[0], batch.frames[k])


def test_streams_of_two_prompts_and_two_sizes_are_the_calls(pipe: TextToVideoPipeline) -> None:
    sizes = [SIZE, (64, 16)]
    calls = [pipe(p, **CALL | {"size": size}) for p, size in zip(PROMPTS, sizes, strict=True)]
    streams = [pipe.stream(p, 21, size=size, seed=0) for p, size in zip(PROMPTS, sizes, strict=True)]
    read = [list(frames) for frames in zip(*streams, strict=True)]
    more = [pipe.stream(p, 21, size=size, seed=0) for p, size in zip(PROMPTS, sizes, strict=True)]
    assert len({id(frames._stream.engine) for frames in more}) == 1
    for frames in more:
        frames.close()
    for own, call in zip(zip(*read, strict=True), calls, strict=True):
        assert [frame.index for frame in own] == list(range(21))
        assert torch.equal(torch.stack([frame.image for frame in own]), call.frames[0])


def test_embeddings_do_as_well_and_the_encoder_may_go(folder: Path, pipe: TextToVideoPipeline) -> None:
    expected = pipe(PROMPTS, **CALL)
    embedded = [pipe.prompts.encode(prompt) for prompt in PROMPTS]
    bare = TextToVideoPipeline(pipe.transformer, pipe.vae, "self-forcing")
    assert torch.equal(bare(embedded, **CALL).frames, expected.frames)
    with pytest.raises(ConfigError, match="text encoder"):
        bare("a red cat", **CALL)
    pipe.prompts.unload()
    assert torch.equal(pipe(PROMPTS, **CALL).frames, expected.frames)
    pipe.prompts.unload()
    other = pipe("swims", **CALL)
    assert torch.equal(other.frames, pipe("swims", **CALL).frames)


def test_an_endless_stream_takes_a_new_prompt_and_says_from_which_frame(folder: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="longlive")
    plain = pipe(PROMPTS[0], **CALL | {"num_frames": 129})
    frames, receipt, stream = [], None, pipe.stream(PROMPTS[0], size=SIZE, seed=0)
    for frame in stream:
        frames.append(frame.image)
        if frame.index == 5:
            receipt = stream.set_prompt(PROMPTS[1])
        if len(frames) == 129:
            break
    stream.close()
    assert receipt is not None and receipt.effect == "recommit" and 5 < receipt.first_frame <= 33
    assert receipt.first_frame % 4 == 1 and len(receipt.latents.recommitted)
    made, first = torch.stack(frames), receipt.first_frame
    assert torch.equal(made[:first], plain.frames[0, :first])
    assert not torch.equal(made[first : first + 12], plain.frames[0, first : first + 12])


def test_a_schedule_of_prompts(pipe: TextToVideoPipeline) -> None:
    """Blocks are of 3 latents: 9 frames, then 12 each. The prompt of frame 8 begins with that of frame 9."""
    plain = pipe(PROMPTS[0], **CALL | {"num_frames": 33}).frames[0]
    for wanted in (1, 8, 9):
        changed = pipe({0: PROMPTS[0], wanted: PROMPTS[1]}, **CALL | {"num_frames": 33}).frames[0]
        assert torch.equal(changed[:9], plain[:9]) and not torch.equal(changed[9:21], plain[9:21])
    late = pipe({0: PROMPTS[0], 10: PROMPTS[1]}, **CALL | {"num_frames": 33}).frames[0]
    assert torch.equal(late[:21], plain[:21]) and not torch.equal(late[21:], plain[21:])
    never = pipe({0: PROMPTS[0], 32: PROMPTS[1]}, **CALL | {"num_frames": 33}).frames[0]
    assert torch.equal(never, plain)


def test_continuation_and_first_frame(pipe: TextToVideoPipeline) -> None:
    """A block begins behind the given frames, whatever their number."""
    given = clip(5)
    out = pipe(PROMPTS[0], video=given, **CALL | {"num_frames": 29})
    assert torch.equal(out.frames[0, :5], given) and out.frames.shape[1] == 29
    other = pipe(PROMPTS[0], video=255 - given, **CALL | {"num_frames": 29})
    assert not torch.equal(out.frames[0, 5:], other.frames[0, 5:])
    decoded = pipe(PROMPTS[0], video=given, given="decoded", **CALL | {"num_frames": 29})
    assert torch.equal(decoded.frames[0, 5:], out.frames[0, 5:])
    assert not torch.equal(decoded.frames[0, :5], given)
    streamed = list(pipe.stream(PROMPTS[0], 29, video=given, size=SIZE, seed=0))
    assert [frame.index for frame in streamed] == list(range(5, 29))
    assert torch.equal(torch.stack([frame.image for frame in streamed]), out.frames[0, 5:])

    first = pipe(PROMPTS[0], image=given[0], **CALL | {"num_frames": 25})
    same = pipe(PROMPTS[0], image=Image.fromarray(given[0].numpy()), **CALL | {"num_frames": 25})
    assert torch.equal(first.frames, same.frames) and torch.equal(first.frames[0, 0], given[0])
    assert torch.equal(pipe(PROMPTS[0], video=given[:1], **CALL | {"num_frames": 25}).frames, first.frames)


def test_given_pictures_of_another_shape_are_cropped(pipe: TextToVideoPipeline) -> None:
    out = pipe(PROMPTS[0], image=clip(1, 100, 60)[0], **CALL | {"num_frames": 25})
    assert out.frames.shape == (1, 25, *SIZE, 3)


def test_a_distilled_transformer_is_one_file(folder: Path, pipe: TextToVideoPipeline, tmp_path: Path) -> None:
    """Official names as training code saves them, next to the folder of the model it was made from."""
    state = {f"generator_ema.model.{name}": value for name, value in pipe.transformer.state_dict().items()}
    file = tmp_path / "self_forcing.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2}))
    own = ade.Pipeline.from_pretrained(folder, system="self-forcing", transformer=file)
    assert torch.equal(own(PROMPTS, **CALL).frames, pipe(PROMPTS, **CALL).frames)


def test_a_lora_is_merged_and_one_for_another_model_refused(folder: Path, tmp_path: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing")
    torch.manual_seed(3)
    name = "blocks.0.self_attn.q"
    pair = {f"{name}.lora_A.weight": torch.randn(3, 24), f"{name}.lora_B.weight": torch.randn(24, 3)}
    save_file(pair, tmp_path / "lora.safetensors")
    before = pipe("a cat", **CALL)
    with torch.no_grad():
        pipe.transformer.get_submodule(name).weight += (
            pair[f"{name}.lora_B.weight"] @ pair[f"{name}.lora_A.weight"]
        )
    merged = ade.Pipeline.from_pretrained(folder, system="self-forcing", lora=tmp_path / "lora.safetensors")
    torch.testing.assert_close(merged("a cat", **CALL).latents, pipe("a cat", **CALL).latents)
    assert not torch.allclose(before.latents, pipe("a cat", **CALL).latents)
    save_file(
        {key: value[..., :2].contiguous() for key, value in pair.items()}, tmp_path / "other.safetensors"
    )
    with pytest.raises(CheckpointError, match="other.safetensors"):
        ade.Pipeline.from_pretrained(folder, system="self-forcing", lora=tmp_path / "other.safetensors")


def test_official_files_side_by_side(folder: Path, pipe: TextToVideoPipeline, tmp_path: Path) -> None:
    save_file(pipe.transformer.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2}))
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="deviation"):  # a file of unknown sizes does not tell them
        ade.Pipeline.from_pretrained(tmp_path, system="self-forcing")
    own = ade.Pipeline.from_pretrained(tmp_path, system="self-forcing", vae=folder / "vae", text=folder)
    assert torch.equal(own(PROMPTS, **CALL).frames, pipe(PROMPTS, **CALL).frames)


@pytest.mark.parametrize("kept", [True, False])
def test_half_precision_and_back(folder: Path, kept: bool) -> None:
    loaded = ade.Pipeline.from_pretrained(folder, system="self-forcing", dtype=torch.bfloat16)
    moved = ade.Pipeline.from_pretrained(folder, system="self-forcing")
    if kept:
        moved(PROMPTS, **CALL)
    moved.to(torch.bfloat16)
    embedded = [loaded.prompts.encode(prompt) for prompt in PROMPTS]
    assert torch.equal(moved(embedded, **CALL).frames, loaded(embedded, **CALL).frames)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_frames": 80}, ConfigError, "81 or 69"),
        ({"num_frames": 77}, ConfigError, "81 or 69"),
        ({"num_frames": 0}, ConfigError, "num_frames"),
        ({"num_frames": 5}, ConfigError, "9"),
        ({"size": (480, 830)}, ConfigError, "480 x 832"),
        ({"size": (0, 16)}, ConfigError, "16 x 16"),
        ({"size": 480}, ConfigError, "size"),
        ({"prompt": []}, ConfigError, "prompt"),
        ({"prompt": 7}, ConfigError, "prompt"),
        ({"prompt": {3: "a"}}, ConfigError, "frame 0"),
        ({"prompt": torch.zeros(4, 5)}, TensorError, "embedding"),
        ({"num_inference_steps": 4}, ConfigError, "steps"),
        ({"guidance_scale": float("nan")}, ConfigError, "guidance"),
        ({"guidance_scale_2": 2.0}, ConfigError, "guidance_scale_2"),
        ({"video": clip(6)}, ConfigError, "first 5"),
        ({"video": clip(21)}, ConfigError, "given"),
        ({"video": clip(5), "image": clip(1)[0]}, ConfigError, "one of them"),
        ({"latents": torch.zeros(1, 6, 4, 4, 4)}, TensorError, "latents"),
        ({"output_type": "gif"}, ConfigError, "output_type"),
        ({"first_video": -1}, ConfigError, "first_video"),
    ],
)
def test_mistakes_are_typed_errors_before_anything_runs(
    pipe: TextToVideoPipeline, monkeypatch: pytest.MonkeyPatch, options, error, says
) -> None:
    monkeypatch.setattr(ade.Engine, "step", lambda *_: pytest.fail("a pass ran"))
    with pytest.raises(error, match=says):
        pipe(**{"prompt": "a cat"} | CALL | options)


def test_what_needs_a_causal_model(folder: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="wan")
    with pytest.raises(ConfigError, match="81 or 77"):
        pipe("a cat", **CALL | {"num_frames": 80})
    with pytest.raises(PlanError, match="number of frames"):
        pipe.stream("a cat", None, size=SIZE)
    with pytest.raises(ConfigError, match="causal"):
        pipe("a cat", image=clip(1)[0], **CALL)


def test_which_pipeline_a_folder_is(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system"):
        ade.Pipeline.from_pretrained(folder)
    with pytest.raises(ConfigError, match="self-forcing"):
        ade.Pipeline.from_pretrained(folder, system="no such thing")
    for place in (tiny_model, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError):
            ade.Pipeline.from_pretrained(place, system="wan")


def another_kind(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


def other_text(folder: Path) -> None:
    wan_folder.text_encoder(24).save_pretrained(folder / "text_encoder")


def other_latents(folder: Path) -> None:
    wan_folder.transformer(in_channels=6, out_channels=6).save_pretrained(folder / "transformer")


def two_experts(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))


def with_clip(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    own = wan_folder.transformer(in_channels=12, image_dim=8, added_kv_proj_dim=24)
    own.save_pretrained(folder / "transformer")


def another_clip(folder: Path) -> None:
    with_clip(folder)
    wan_folder.image_encoder(width=4).save_pretrained(folder / "image_encoder")


def odd_channels(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    wan_folder.transformer(in_channels=7).save_pretrained(folder / "transformer")


def no_autoencoder(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def mixed_shards(folder: Path) -> None:
    first, *_ = sorted((folder / "transformer").glob("*.safetensors"))
    held = load_file(first)
    save_file(held | {"blocks.9.attn1.to_q.bias": torch.zeros(24)}, first)


def lost_shard(folder: Path) -> None:
    sorted((folder / "transformer").glob("*.safetensors"))[0].unlink()


def pickled(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")
    (folder / "transformer").mkdir()
    torch.save({}, folder / "transformer" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (another_kind, CheckpointError, "StableDiffusion"),
        (other_text, ConfigError, "24 wide"),
        (other_latents, ConfigError, "channels"),
        (two_experts, CheckpointError, "boundary_ratio"),
        (with_clip, ConfigError, "CLIP"),
        (another_clip, ConfigError, "257 tokens of 4"),
        (odd_channels, ConfigError, "7 channels"),
        (no_autoencoder, CheckpointError, "autoencoder"),
        (mixed_shards, CheckpointError, "different saves"),
        (lost_shard, CheckpointError, "safetensors"),
        (pickled, CheckpointError, "convert"),
    ],
)
def test_folders_that_are_refused_before_weights_are_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch, harm, error, says
) -> None:
    harm(copy)
    monkeypatch.setattr(
        "ardiff_engine.weights.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("read weights")
    )
    with pytest.raises(error, match=says):
        ade.Pipeline.from_pretrained(copy, system="self-forcing")


def test_nan_in_one_tensor(copy: Path) -> None:
    first, *_ = sorted((copy / "transformer").glob("*.safetensors"))
    held = load_file(first)
    next(iter(held.values())).flatten()[0] = float("nan")
    save_file(held, first)
    with pytest.raises(ArdiffError, match="NaN"):
        ade.Pipeline.from_pretrained(copy, system="self-forcing")
