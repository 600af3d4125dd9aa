# SPDX-License-Identifier: Apache-2.0
"""The pipeline on a tiny random model: what goes in, what comes out, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ardiff_engine as ade
from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError, TensorError
from ardiff_engine.models import TiTok, TiTokConfig, from_tokens
from ardiff_engine.models.pictures import to_images, to_uint8
from ardiff_engine.models.titok.codec import FrameDecoder

OPTIONS = {"num_frames": 10, "num_inference_steps": 4, "lag": 2, "progress": False}
SEEDED = OPTIONS | {"seed": 0}


@pytest.fixture(scope="module")
def pipe(tiny_model) -> ade.Pipeline:
    return ade.Pipeline.from_pretrained(tiny_model)


def clip(frames: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator).to(torch.uint8)


def same_pictures(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Decoded together, frames are rounded otherwise than decoded one by one."""
    return int((one.int() - two.int()).abs().max()) <= 1


def test_shapes_and_seeds(pipe):
    out = pipe(num_videos=2, seed=3, **OPTIONS)
    assert out.frames.shape == (2, 10, 16, 16, 3) and out.frames.dtype == torch.uint8
    assert out.latents.shape == (2, 10, 4, 4) and out.latents.dtype == torch.float32
    assert out.stats.frames == 20 and out.stats.exact and out.stats.pages_held == 0
    again, other = pipe(num_videos=2, seed=3, **OPTIONS), pipe(seed=4, **OPTIONS)
    assert torch.equal(out.frames, again.frames)
    assert not torch.equal(out.latents[0], out.latents[1]) and not torch.equal(out.latents[:1], other.latents)


def test_without_a_seed_every_call_gives_another_video_and_names_its_seed(pipe):
    torch.manual_seed(5)
    first, second = pipe(**OPTIONS), pipe(**OPTIONS)
    assert first.seed != second.seed and not torch.equal(first.latents, second.latents)
    assert torch.equal(pipe(seed=second.seed, **OPTIONS).latents, second.latents)
    torch.manual_seed(5)
    assert torch.equal(pipe(**OPTIONS).latents, first.latents)
    frames = list(pipe.stream(10, 4, 2))
    again = list(pipe.stream(10, 4, 2, seed=frames[0].seed))
    assert all(torch.equal(one.latent, two.latent) for one, two in zip(frames, again, strict=True))


def test_every_video_of_a_batch_can_be_made_again_alone(pipe):
    batch = pipe(num_videos=3, eta=0.5, first_video=2, **OPTIONS)
    for k in range(3):
        alone = pipe(seed=batch.seed, first_video=batch.first_video + k, eta=0.5, **OPTIONS)
        assert torch.equal(alone.latents[0], batch.latents[k])
        assert torch.equal(alone.frames[0], batch.frames[k])


def test_the_first_arguments_by_position(pipe):
    assert torch.equal(pipe(10, 4, 2, seed=1, progress=False).latents, pipe(seed=1, **OPTIONS).latents)


def test_forms_of_the_frames(pipe):
    tensor = pipe(seed=1, num_videos=2, **OPTIONS).frames.numpy()
    array = pipe(seed=1, num_videos=2, output_type="np", **OPTIONS).frames
    assert isinstance(array, np.ndarray) and np.array_equal(array, tensor)
    pictures = pipe(seed=1, num_videos=2, output_type="pil", **OPTIONS).frames
    assert [len(video) for video in pictures] == [10, 10]
    for video, expected in zip(pictures, tensor, strict=True):
        assert np.array_equal(np.stack([np.asarray(picture) for picture in video]), expected)


def test_moving_to_another_dtype_is_loading_in_it(tiny_model):
    loaded = ade.Pipeline.from_pretrained(tiny_model, torch_dtype=torch.bfloat16)
    moved = ade.Pipeline.from_pretrained(tiny_model)
    before = moved(seed=1, **OPTIONS)
    assert moved.to("cpu", torch.bfloat16) is moved and moved.dtype == torch.bfloat16
    assert next(moved.vae.parameters()).dtype == torch.float32
    assert torch.equal(moved(seed=1, **OPTIONS).latents, loaded(seed=1, **OPTIONS).latents)
    assert not torch.equal(before.latents, moved(seed=1, **OPTIONS).latents)
    again = moved.to(torch.float32).to(device="cpu").decode(before.latents[0])
    assert same_pictures(again, before.frames[0])


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ((torch.int64,), {}),
        (("cpu", "cpu"), {}),
        ((), {"dtype": torch.uint8}),
        ((3.5,), {}),
        (("cuda:99",), {}),
    ],
)
def test_places_that_a_pipeline_cannot_move_to(pipe, places, named):
    with pytest.raises(ConfigError):
        pipe.to(*places, **named)
    assert pipe.dtype == torch.float32


def test_one_name_of_the_dtype(tiny_model):
    with pytest.raises(ConfigError, match="dtype"):
        ade.Pipeline.from_pretrained(tiny_model, dtype=torch.float32, torch_dtype=torch.bfloat16)


def test_what_is_printed_of_them(pipe):
    assert "16 x 16" in repr(pipe) and "3 classes" in repr(pipe) and "torch.float32" in repr(pipe)
    solver = ade.solvers.DDIM(pipe.schedule, num_inference_steps=4)
    engine = ade.Engine(pipe.transformer, solver=solver, max_pages=100)
    stream = engine.submit(ade.Request(num_frames=10, lag=2))
    assert "running, 10 frames, 0 ready" in repr(stream) and "1 streams, 0 of 100 pages" in repr(engine)
    stream.result()
    assert "finished" in repr(stream) and "10 ready" in repr(stream) and "0 streams" in repr(engine)


def test_pictures_are_the_decoded_latents(pipe):
    out = pipe(**SEEDED)
    with torch.no_grad():
        images = pipe.vae.decode(from_tokens(out.latents))
    assert same_pictures(to_uint8(images[0]), out.frames[0])


def test_stream_gives_the_frames_of_the_call(pipe):
    out = pipe(seed=5, class_id=1, **OPTIONS)
    frames = list(pipe.stream(num_frames=10, num_inference_steps=4, lag=2, seed=5, class_id=1))
    assert [frame.index for frame in frames] == list(range(10))
    assert torch.equal(torch.stack([frame.image for frame in frames]), out.frames[0])
    seconds = [frame.seconds for frame in frames]
    assert seconds == sorted(seconds)


def test_continuation_keeps_the_given_frames_and_depends_on_them(pipe):
    given = clip(4)
    out = pipe(video=given, **SEEDED)
    assert out.frames.shape[1] == 10 and torch.equal(out.frames[0, :4], given)
    other = pipe(video=255 - given, **SEEDED)
    assert not torch.allclose(out.latents[0, 4:], other.latents[0, 4:])
    streamed = list(pipe.stream(num_frames=10, num_inference_steps=4, lag=2, seed=0, video=given))
    assert [frame.index for frame in streamed] == list(range(4, 10))
    assert torch.equal(torch.stack([frame.image for frame in streamed]), out.frames[0, 4:])


def test_given_frames_can_be_shown_as_the_autoencoder_sees_them(pipe):
    given = clip(4)
    shown = pipe(video=given, seed=1, **OPTIONS)
    decoded = pipe(video=given, seed=1, given="decoded", **OPTIONS)
    assert torch.equal(decoded.latents, shown.latents)
    assert torch.equal(decoded.frames[0, 4:], shown.frames[0, 4:])
    assert same_pictures(decoded.frames[0], pipe.decode(shown.latents[0]))
    assert not torch.equal(decoded.frames[0, :4], given)


def test_a_video_in_every_form(pipe):
    given = clip(4)
    expected = pipe(video=given, seed=1, **OPTIONS).frames
    pictures = [Image.fromarray(frame) for frame in given.numpy()]
    for form in (given.numpy(), given.float() / 255, (given.double() / 255).numpy(), pictures):
        assert torch.equal(pipe(video=form, seed=1, **OPTIONS).frames, expected)


def test_an_engine_continues_an_encoded_video_as_the_pipeline_does(pipe):
    given = clip(4, 20, 16)
    out = pipe(video=given, **SEEDED)
    solver = ade.solvers.DDIM(pipe.schedule, num_inference_steps=4, prediction=pipe.prediction)
    memory = ade.memory.RecomputedWindow(pipe.transformer.spec.num_frames)
    engine = ade.Engine(pipe.transformer, solver=solver, memory=memory, max_pages=100)
    latents = engine.submit(ade.Request(num_frames=10, lag=2, seed=0, prefix=pipe.encode(given))).result()
    assert torch.equal(latents, out.latents[0])
    assert same_pictures(pipe.decode(latents)[4:], out.frames[0, 4:])


def test_videos_of_other_sizes_are_cropped(pipe):
    wide = clip(3, height=20, width=40)
    out = pipe(video=wide, **OPTIONS)
    assert out.frames.shape[2:4] == (16, 16)
    middle = to_images(wide, 16)
    assert torch.equal(out.frames[0, :3], to_uint8(middle))


def test_arrays_with_negative_strides(pipe):
    given = clip(3).numpy()
    backwards = pipe(video=given[::-1], **SEEDED)
    assert torch.equal(backwards.frames[0, :3], torch.from_numpy(given[::-1].copy()))


def test_class_and_guidance_change_the_video(pipe):
    plain, first, second = (pipe(class_id=c, **SEEDED).latents for c in (None, 0, 1))
    assert not torch.allclose(first, second) and not torch.allclose(plain, first)
    guided = pipe(class_id=0, guidance_scale=3.0, **SEEDED).latents
    assert not torch.allclose(first, guided)
    pair = pipe(class_id=[0, 1], num_videos=2, **SEEDED).latents
    torch.testing.assert_close(pair[:1], first, rtol=1e-5, atol=1e-5)
    assert torch.equal(pipe(class_id=np.int64(1), **SEEDED).latents, second)
    assert torch.equal(pipe(class_id=torch.tensor([1]), **SEEDED).latents, second)


def test_a_video_does_not_depend_on_how_many_are_made(pipe):
    def start(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for options in ({"seed": 1}, {"generator": start(1)}):
        if "generator" in options:
            one = pipe(generator=start(1), **OPTIONS).latents
            two = pipe(generator=start(1), num_videos=2, **OPTIONS).latents
            listed = pipe(generator=[start(1), start(2)], num_videos=2, **OPTIONS).latents
            torch.testing.assert_close(listed[:1], one, rtol=1e-5, atol=1e-5)
        else:
            one = pipe(**options, **OPTIONS).latents
            two = pipe(**options, num_videos=2, **OPTIONS).latents
        torch.testing.assert_close(two[:1], one, rtol=1e-5, atol=1e-5)


def test_explicit_latents(pipe):
    start = torch.randn(1, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    own = pipe(latents=start, seed=1, **OPTIONS).latents
    assert torch.equal(own, pipe(latents=start, seed=2, **OPTIONS).latents)


def test_every_tick_is_reported(pipe):
    ticks = []
    pipe(callback_on_step_end=lambda info: ticks.append((info.video, info.tick, info.num_ticks)), **OPTIONS)
    assert ticks == [(0, tick, 22) for tick in range(1, 23)]


def test_a_failing_video_raises_its_own_error(pipe):
    def explode(info):
        if info.video == 1 and info.tick == 6:
            raise RuntimeError("not this one")

    with pytest.raises(ArdiffError, match="not this one"):
        pipe(num_videos=2, callback_on_step_end=explode, **OPTIONS)


@pytest.mark.parametrize("given", [0, 1, 3, 4, 6])
def test_a_temporal_autoencoder_decodes_in_the_phase_of_its_clips(given):
    """Frames decoded as they come equal the whole video decoded at once, also after given frames."""
    torch.manual_seed(0)
    config = TiTokConfig(
        image_size=16, patch_size=4, encoder_width=16, encoder_layers=1, encoder_heads=2, decoder_width=16,
        decoder_layers=2, decoder_heads=2, num_latent_tokens=4, token_size=4, codebook_logits=16,
        quantized_channels=8, hidden_channels=8, channel_multipliers=(1, 1, 2), res_blocks=1, norm_groups=4,
        temporal=True, num_frames=4,
    )  # fmt: skip
    vae = TiTok(config).eval()
    latents = torch.randn(8, 4, 4)
    with torch.no_grad():
        whole = to_uint8(vae.decode(from_tokens(latents[None]))[0])
    decode = FrameDecoder(vae, latents[:given])
    pieces = torch.cat(
        [decode.push(latents[given : given + 1])]
        + [decode.push(latents[i : i + 1]) for i in range(given + 1, 8)]
    )
    assert int((pieces.int() - whole[given:].int()).abs().max()) <= 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_frames": None}, ConfigError),
        ({"num_frames": 2.5}, ConfigError),
        ({"num_videos": 0}, ConfigError),
        ({"class_id": 3}, TensorError),
        ({"class_id": "a"}, ConfigError),
        ({"class_id": [0, 1]}, ConfigError),
        ({"generator": [torch.Generator()] * 2}, ConfigError),
        ({"latents": torch.zeros(10, 4, 4)}, TensorError),
        ({"video": torch.zeros(3, 16, 16)}, ArdiffError),
        ({"video": torch.full((3, 16, 16, 3), torch.nan)}, ArdiffError),
        ({"class_id": 10**20}, TensorError),
        ({"seed": 2**63}, ConfigError),
        ({"seed": "a"}, ConfigError),
        ({"first_video": -1}, ConfigError),
        ({"first_video": 2**32}, ConfigError),
        ({"output_type": "latent"}, ConfigError),
        ({"given": "frames"}, ConfigError),
        ({"video": clip(10)}, ConfigError),
        ({"lag": 5}, ConfigError),
        ({"lag": 0}, ConfigError),
        ({"num_inference_steps": 0}, ConfigError),
        ({"eta": 2.0}, ConfigError),
        ({"memory": 16}, ConfigError),
    ],
)
def test_mistakes_are_typed_errors(pipe, options, error):
    with pytest.raises(error):
        pipe(**(OPTIONS | options))


def test_saved_and_loaded_it_is_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    loaded = ade.Pipeline.from_pretrained(tmp_path / "copy")
    assert torch.equal(loaded(**SEEDED).latents, pipe(**SEEDED).latents)
    assert loaded.prediction == pipe.prediction


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"schedule": "x", "prediction": "x0"}',
        b"\xff\xfe",
        b'{"schedule": {}, "prediction": "x0"}',
    ],
)
def test_a_broken_scheduler_file(tiny_model, tmp_path, content):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "scheduler.json").write_bytes(content)
    with pytest.raises(ArdiffError):
        ade.Pipeline.from_pretrained(folder)


def test_an_unknown_prediction_is_refused_at_once(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    scheduler = json.loads((folder / "scheduler.json").read_text()) | {"prediction": "x1"}
    (folder / "scheduler.json").write_text(json.dumps(scheduler))
    with pytest.raises(ConfigError):
        ade.Pipeline.from_pretrained(folder)


def test_parts_that_do_not_fit_and_folders_that_are_none(pipe, tmp_path):
    config = ade.models.ARDiffusionConfig(
        tokens_per_frame=5, width=16, depth=1, heads=2, context_tokens=2, context_dim=4
    )
    with pytest.raises(ConfigError, match="do not fit"):
        ade.Pipeline(ade.models.ARDiffusionTransformer(config), pipe.vae, pipe.schedule)
    with pytest.raises(CheckpointError, match="bundled|one of"):
        ade.Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there(tiny_model, device):
    with pytest.raises(ConfigError, match=f"device: got '{device}'"):
        ade.Pipeline.from_pretrained(tiny_model, device=device)


def test_the_bundled_model_is_where_the_package_looks_for_it() -> None:
    pipe = ade.Pipeline.from_pretrained("moving-digits")
    out = pipe(num_frames=3, num_inference_steps=4, lag=2, seed=0, progress=False)
    pictures = out.frames[0]
    assert pictures.shape[0] == 3 and pictures.float().std() > 0
