# SPDX-License-Identifier: Apache-2.0
# SPDX-License-Identifier: Apache-2.0
"""Text to video from a folder that diffusers wrote: the whole path, and what it refuses before it loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import wan_folder
from helpers.video_pipelines import CALL, PROMPTS, SIZE, clip
from PIL import Image
from safetensors.torch import load_file, save_file

import ardiff_engine as ade
from ardiff_engine.errors import (
    CheckpointError,
    ConfigError,
    MediaError,
    OutOfMemoryError,
    OutOfPagesError,
    PlanError,
    TensorError,
)
from ardiff_engine.pipeline.pixels import Pixels
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TextToVideoPipeline:
    return ade.Pipeline.from_pretrained(folder, system="self-forcing")


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
    """Official names as training code saves them, for the folder of the model it was made from, which says
    how wide heads are, unless a config.json beside the file does."""
    state = {f"generator_ema.model.{name}": value for name, value in pipe.transformer.state_dict().items()}
    file = tmp_path / "self_forcing.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    want = pipe(PROMPTS, **CALL).frames
    for heads, same in ((None, True), (2, True), (1, False)):
        if heads is not None:
            (tmp_path / "config.json").write_text(json.dumps({"num_heads": heads}))
        own = ade.Pipeline.from_pretrained(folder, system="self-forcing", transformer=file)
        assert torch.equal(own(PROMPTS, **CALL).frames, want) is same


def test_a_lora_is_merged_and_one_for_another_model_refused_unread(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(
        "ardiff_engine.weights.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("read weights")
    )
    for other in (
        {f"{name}.lora_A.weight": torch.randn(3, 32), f"{name}.lora_B.weight": torch.randn(32, 3)},
        {key.replace("blocks.0", "blocks.7"): value for key, value in pair.items()},
        {key: value[..., :2].contiguous() for key, value in pair.items()},
    ):
        save_file(other, tmp_path / "other.safetensors")
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
    # With the official text encoder beside them, or named.
    state = load_file(folder / "text_encoder" / "model.safetensors")
    encoder = tmp_path / "models_t5_umt5-xxl-enc-bf16.safetensors"
    save_file({wan_folder.official_umt5(name): weight for name, weight in state.items()}, encoder)
    shutil.copytree(folder / "tokenizer", tmp_path / "google" / "umt5-xxl")
    for text in (None, encoder, tmp_path):
        own = ade.Pipeline.from_pretrained(tmp_path, system="self-forcing", vae=folder / "vae", text=text)
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
        ({"prompt": {0: "a", 18: "b"}}, ConfigError, "frame 18"),
        ({"prompt": {0: "a", 2: "b", 5: "c"}}, ConfigError, "frame 2"),
        ({"prompt": {0: "a", 10**9: "b"}}, ConfigError, "frame"),
        ({"prompt": {0: "a", 9.5: "b"}}, ConfigError, "frame"),
        ({"prompt": {0: "a", 9: "b", "9": "c"}}, ConfigError, "one prompt each"),
        ({"negative_prompt": "b"}, ConfigError, "negative_prompt"),
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
        ({"seed": True}, ConfigError, "seed"),
        ({"seed": 1.0}, ConfigError, "seed"),
        ({"seed": 2**63}, ConfigError, "seed"),
        ({"guidance_scale": True}, ConfigError, "guidance_scale"),
        ({"image": torch.full((*SIZE, 3), 200.0)}, MediaError, "by 255"),
    ],
)
def test_mistakes_are_typed_errors_before_anything_runs(
    pipe: TextToVideoPipeline, monkeypatch: pytest.MonkeyPatch, options, error, says
) -> None:
    monkeypatch.setattr(ade.Engine, "step", lambda *_: pytest.fail("a pass ran"))
    with pytest.raises(error, match=says):
        pipe(**{"prompt": "a cat"} | CALL | options)


def test_videos_that_do_not_fit_are_told_before_anything_runs(
    pipe: TextToVideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory at, and just below, what the call takes beside the pages that are kept."""
    pipe("a cat", **CALL)
    monkeypatch.setattr(ade.Engine, "step", lambda *_: pytest.fail("a pass ran"))
    monkeypatch.setattr(Pixels, "encode", lambda *_: pytest.fail("a picture was encoded"))
    for changes in ({"size": (160000, 480000)}, {"size": (160000, 480000), "image": clip(1)[0]}):
        with pytest.raises(ConfigError, match="GiB are free"):
            pipe("a cat", **CALL | changes)
    monkeypatch.undo()
    work = sum(pipe.pixels.memory((SIZE[0] // 8, SIZE[1] // 8)))
    monkeypatch.setattr("ardiff_engine.device.available_memory", lambda: work)
    with pytest.raises(OutOfMemoryError, match="to compute and decode"):
        pipe("a cat", **CALL)
    with pytest.raises(OutOfPagesError, match="pages"):  # an endless one wants more of them
        pipe.stream("a cat", size=SIZE)
    monkeypatch.undo()
    pipe("a cat", **CALL)


def test_what_needs_a_causal_model(folder: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="wan")
    with pytest.raises(ConfigError, match="81 or 77"):
        pipe("a cat", **CALL | {"num_frames": 80})
    with pytest.raises(PlanError, match="number of frames"):
        pipe.stream("a cat", None, size=SIZE)
    with pytest.raises(ConfigError, match="causal"):
        pipe("a cat", image=clip(1)[0], **CALL)


def test_loras_that_are_no_paths(folder: Path) -> None:
    for lora in (5, [5], [], ["a", "b"]):
        with pytest.raises(ConfigError, match="lora"):
            ade.Pipeline.from_pretrained(folder, system="self-forcing", lora=lora)


def test_a_memory_that_ends_says_how_long_a_video_may_be(folder: Path) -> None:
    """Diffusion Forcing sees 18 latents at most: 69 frames."""
    pipe = ade.Pipeline.from_pretrained(folder, system="diffusion-forcing")
    with pytest.raises(ConfigError, match=r"got 81.*\b69 would do"):
        pipe("a cat", **CALL | {"num_frames": 81})
