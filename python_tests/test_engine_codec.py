# SPDX-License-Identifier: Apache-2.0
"""An engine with a codec: the pictures of a stream are those of its latents decoded whole, bit for bit,
whatever happened to it on its way; and what decoders keep is known before and given back."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref

import pytest
import torch
from official_keys import generate_weights

import ardiff_engine as ade
from ardiff_engine.codec import WanVAE
from ardiff_engine.codec.video import VideoDecoder
from ardiff_engine.engine import Engine, Request, Stream, decoding
from ardiff_engine.errors import (
    ArdiffError,
    ConfigError,
    OutOfMemoryError,
    PlanError,
    StreamInterruptedError,
)
from ardiff_engine.models.wan import WanConfig, WanTransformer

SIZE = (4, 6)


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    model = WanTransformer(
        WanConfig(
            width=32, depth=1, heads=2, mlp_width=48, channels=4, out_channels=4, text_dim=8, text_tokens=3
        )
    )
    generate_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    vae = WanVAE(4, 4, (1, 1, 1, 1), 1, [0.1] * 4, [1.5] * 4)
    generate_weights(vae)
    return vae.requires_grad_(False)


def engine_for(model: WanTransformer, codec: object, **options) -> Engine:
    schedule = ade.FlowSchedule(shift=5.0)
    return Engine(
        model,
        solver=ade.solvers.Renoise(schedule, [1000, 500]),
        memory=ade.memory.Window(4),
        plan=ade.plan.blocks(2),
        codec=codec,  # type: ignore[arg-type]
        max_pages=512,
        **options,
    )


def request(**options) -> Request:
    return Request(**{"num_frames": 6, "size": SIZE, "condition": torch.ones(2, 8), **options})


def decoded(vae: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    """[F, C, h, w] -> [T, 3, H, W]"""
    return vae.decode(latents.transpose(0, 1)[None])[0].transpose(0, 1)


def check(pictures: list[decoding.Picture], expected: torch.Tensor) -> None:
    assert [picture.index for picture in pictures] == list(range(len(expected)))
    assert torch.equal(torch.stack([picture.pixels for picture in pictures]), expected)


def live_decoders() -> int:
    gc.collect()
    return sum(type(found) is VideoDecoder and found._past is not None for found in gc.get_objects())


class Counted:
    """A codec of the protocol and nothing more; it notes its calls."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae
        self.pushed: list[int] = []
        self.closed = 0

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels)

    def bytes_per_stream(self, size: tuple[int, int]) -> int:
        return self.vae.bytes_per_stream(size)

    def decoder(self, given: torch.Tensor | None = None) -> Counted.Decoder:
        return Counted.Decoder(self, given)

    class Decoder:
        def __init__(self, codec: Counted, given: torch.Tensor | None) -> None:
            self.codec, self.inner = codec, codec.vae.decoder(given)

        def push(self, latents: torch.Tensor) -> torch.Tensor:
            self.codec.pushed.append(len(latents))
            return self.inner.push(latents)

        def close(self) -> None:
            self.codec.closed += 1


def test_pictures_come_frame_by_frame(model, vae) -> None:
    codec = Counted(vae)
    stream = engine_for(model, codec).submit(request())
    pictures = list(stream.pictures())
    check(pictures, decoded(vae, stream.result()))
    assert codec.pushed == [1] * 6 and codec.closed == 1
    image = pictures[3].image
    assert image.dtype == torch.uint8 and image.shape == (8 * SIZE[0], 8 * SIZE[1], 3)


def test_images_and_frames(model, vae) -> None:
    stream = engine_for(model, vae).submit(request())
    frames = list(stream)
    assert [len(frame.pictures) for frame in frames] == [1, 4, 4, 4, 4, 4]
    assert all(picture.frame == frame.index for frame in frames for picture in frame.pictures)
    picture = frames[2].pictures[1]
    expected = (picture.pixels.permute(1, 2, 0).clamp(-1, 1) + 1) / 2 * 255
    assert torch.equal(picture.image, expected.round().to(torch.uint8))

    async def read(stream: Stream) -> list[decoding.Picture]:
        return [picture async for frame in stream for picture in frame.pictures]

    again = asyncio.run(read(engine_for(model, vae).submit(request())))
    check(again, torch.stack([p.pixels for frame in frames for p in frame.pictures]))


def test_alone_and_in_company(model, vae) -> None:
    options = [
        {"seed": 1},
        {"seed": 2, "num_frames": 4, "size": (6, 4)},
        {"seed": 3, "plan": ade.plan.blocks(1)},
    ]
    engine = engine_for(model, vae)
    streams = [engine.submit(request(**own)) for own in options]
    together = [list(stream.pictures()) for stream in streams]
    for own, pictures in zip(options, together, strict=True):
        alone = engine_for(model, vae).submit(request(**own))
        check(pictures, torch.stack([picture.pixels for picture in alone.pictures()]))
        check(pictures, decoded(vae, alone.result()))


def test_a_video_that_goes_on_after_given_frames(model, vae) -> None:
    prefix = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(5))
    stream = engine_for(model, vae).submit(request(prefix=prefix))
    check(list(stream.pictures()), decoded(vae, stream.result())[5:])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("read", [0, 1, 2, 3, 4])
def test_rollback(model, vae, plain: bool, read: int) -> None:
    """Pictures of frames that were read before come again, those that were not come once."""
    engine = engine_for(model, Counted(vae) if plain else vae)
    whole = decoded(vae, engine.submit(request()).result())
    stream = engine.submit(request())
    while stream.frames_ready < 4:
        engine.step(passes=1)
    frames = list(itertools.islice(iter(stream._take, None), read))
    stream.rollback(2)
    pictures = [p for frame in [*frames[:2], *stream] for p in frame.pictures]
    check(pictures, decoded(vae, stream.result()))
    assert torch.equal(pictures[0].pixels, whole[0])


def test_fork_and_suspend(model, vae) -> None:
    for codec in (vae, Counted(vae)):
        engine = engine_for(model, codec)
        stream = engine.submit(request())
        while stream.frames_ready < 2:
            engine.step(passes=1)
        first = [picture for frame in stream.take_ready() for picture in frame.pictures]
        other = stream.fork(seed=9)
        stream.suspend()
        forked = list(other.pictures())
        check([*first, *forked], decoded(vae, other.result()))
        stream.resume()
        check([*first, *stream.pictures()], decoded(vae, stream.result()))
        assert not torch.equal(stream.result(), other.result())


def test_extension_and_another_condition(model, vae) -> None:
    stream = engine_for(model, vae).submit(request())
    pictures = []
    for picture in stream.pictures():
        pictures.append(picture)
        if picture.index == 8:
            stream.extend(2)
            stream.set_condition(torch.zeros(2, 8), effect="reset")
    assert len(pictures) == 1 + 4 * 7
    check(pictures, decoded(vae, stream.result()))


def test_an_endless_stream_keeps_few_latents_and_can_go_back(model, vae) -> None:
    engine = engine_for(model, vae)
    stream = engine.submit(request(num_frames=None, max_ahead=4))
    latents, frames = [], iter(stream)
    most = vae.reach + 4 + 2  # history, window, block
    while len(latents) < most + 10:
        frame = next(frames)
        latents.append(frame)
        assert len(stream._state.decoder._latents) <= most
    back = latents[-1].index
    stream.rollback(back)
    again = [next(frames) for _ in range(3)]
    assert [frame.index for frame in again] == [back, back + 1, back + 2]
    video = torch.stack([frame.latent for frame in latents[:back] + again])
    expected = decoded(vae, video)[1 + 4 * (back - 1) :]
    assert torch.equal(torch.stack([p.pixels for frame in again for p in frame.pictures]), expected)
    assert again[0].pictures[0].index == 1 + 4 * (back - 1)
    with pytest.raises(PlanError):
        stream._state.decoder.check_back(3)
    frames.close()


def test_decoders_are_freed(model, vae) -> None:
    before = live_decoders()
    engine = engine_for(model, vae)
    streams = [engine.submit(request(seed=seed)) for seed in range(4)]
    while streams[0].frames_ready < 2:
        engine.step(passes=1)
    assert live_decoders() == before + 4
    streams[0].cancel()
    streams[1].result()
    unread = list(streams[1].pictures())
    check(unread, decoded(vae, streams[1].result()))
    held = weakref.ref(streams[2]._state.decoder)
    del streams[2]
    engine.step()
    assert held() is None
    streams[2].result()
    assert live_decoders() == before


class Breaks:
    """In place of a decoder's push: raises at its call number `at`."""

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.calls, self.at = error, 0, at
        self.push = VideoDecoder.push

    def __get__(self, decoder: VideoDecoder, kind: type) -> object:
        return lambda latents: self(decoder, latents)

    def __call__(self, decoder: VideoDecoder, latents: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls != self.at:
            return self.push(decoder, latents)
        self.push(decoder, latents[:1])
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("a fault"), KeyboardInterrupt()])
def test_a_decoder_that_fails_ends_its_stream_alone(model, vae, monkeypatch, error: BaseException) -> None:
    engine, before = engine_for(model, vae), live_decoders()
    streams = [engine.submit(request(seed=seed, plan=ade.plan.blocks(1 + seed))) for seed in range(2)]
    # The second stream's first block: the first one, frame by frame, has had its second turn by then.
    breaks = Breaks(error, 2)
    monkeypatch.setattr(VideoDecoder, "push", breaks)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            while engine.step(passes=1):
                pass
        monkeypatch.undo()
        assert any(stream.state == "failed" for stream in streams)
        for stream in streams:
            if stream.state == "failed":
                with pytest.raises(StreamInterruptedError):
                    stream.result()
    else:
        while engine.step(passes=1):
            pass
        monkeypatch.undo()
        states = [stream.state for stream in streams]
        assert sorted(states) == ["failed", "finished"]
        good, bad = streams[states.index("finished")], streams[states.index("failed")]
        check(list(good.pictures()), decoded(vae, good.result()))
        with pytest.raises(ArdiffError, match="a fault"):
            list(bad.pictures())
    del streams
    assert live_decoders() == before and engine.pool.manager.held == 0


def test_memory_that_is_short_for_a_moment_is_tried_again(model, vae, monkeypatch) -> None:
    breaks = Breaks(MemoryError(), 3)
    monkeypatch.setattr(VideoDecoder, "push", breaks)
    stream = engine_for(model, vae).submit(request())
    pictures = list(stream.pictures())
    assert breaks.calls > 4
    check(pictures, decoded(vae, stream.result()))


def test_memory_is_counted_before_anything_is_taken(model, vae, monkeypatch) -> None:
    said = vae.bytes_per_stream(SIZE)
    free = [int(2.5 * said)]
    monkeypatch.setattr(decoding, "available_memory", lambda: free[0])
    engine = engine_for(model, vae)
    first = engine.submit(request())
    second = engine.submit(request())
    pages = engine.pool.manager.unpromised
    with pytest.raises(OutOfMemoryError, match="MiB"):
        engine.submit(request())
    with pytest.raises(OutOfMemoryError):
        first.fork()
    assert engine.pool.manager.unpromised == pages
    # A smaller one has room; and what a decoder has taken is no longer both taken and promised.
    engine.submit(request(size=(2, 2))).cancel()
    while first.frames_ready < 4:
        engine.step(passes=1)
    assert first._state.decoder.missing == 0
    free[0] = int(1.2 * said)
    engine.submit(request()).cancel()
    assert second.state == "running"


def test_the_plan_of_memory(model, vae) -> None:
    options = {
        "solver": ade.solvers.Euler(ade.FlowSchedule(shift=5.0), 4),
        "request": request(),
        "streams": 3,
    }
    plan = Engine.memory_plan(model, **options, codec=vae)
    assert plan.decoders_bytes == 3 * vae.bytes_per_stream(SIZE)
    assert plan.total_bytes == Engine.memory_plan(model, **options).total_bytes + plan.decoders_bytes
    assert "decoders" in str(plan)


def test_what_is_refused(model, vae) -> None:
    other = WanVAE(4, 8, (1, 1, 1, 1), 1, [0.0] * 8, [1.0] * 8)
    for codec in (3, WanVAE, object(), other):
        with pytest.raises(ConfigError, match="codec"):
            engine_for(model, codec)
    stream = engine_for(model, None).submit(request())
    with pytest.raises(ConfigError, match="codec"):
        stream.pictures()
    assert [frame.pictures for frame in stream] == [()] * 6


def test_pictures_of_titok(tiny_model) -> None:
    """A codec of one size whose pictures are uint8, after a fork and a rollback too."""
    pipe = ade.Pipeline.from_pretrained(tiny_model)
    solver = ade.solvers.DDIM(pipe.schedule, num_inference_steps=4, prediction=pipe.prediction)
    stream = Engine(pipe.transformer, solver=solver, codec=pipe.codec).submit(Request(num_frames=8, lag=4))
    while stream.frames_ready < 3:
        stream.engine.step(passes=1)  # type: ignore[attr-defined]
    other = stream.fork()
    stream.rollback(1)
    images = torch.stack([picture.image for picture in stream.pictures()])
    assert images.dtype == torch.uint8 and len(images) == 8
    # Together, frames are rounded otherwise than one by one.
    assert int((images.int() - pipe.decode(stream.result()).int()).abs().max()) <= 1
    assert [picture.frame for picture in other.pictures()] == [3, 4, 5, 6, 7]


def test_given_frames_are_decoded_and_not_delivered(
    model: WanTransformer, vae: WanVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures behind them are those of the whole latents; a codec that fails changes nothing."""
    engine = engine_for(model, vae)
    stream = engine.submit(request(num_frames=8))
    while stream.frames_ready < 6:
        engine.step(1)
    read = [picture for frame in stream.take_ready()[:4] for picture in frame.pictures]
    given = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(3))
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="today"):
        patched.setattr(VideoDecoder, "push", lambda *_: (_ for _ in ()).throw(RuntimeError("not today")))
        stream.rollback(4, given)
    assert stream.frames_ready == 0
    stream.rollback(4, given)
    assert stream.frames_ready == 0
    latents = stream.result()
    assert torch.equal(latents[4:6], given)
    expected = decoded(vae, latents)
    rest = [picture for frame in stream.take_ready() for picture in frame.pictures]
    assert [picture.index for picture in rest] == list(range(21, 29))
    assert torch.equal(torch.stack([own.pixels for own in read]), expected[:13])
    assert torch.equal(torch.stack([own.pixels for own in rest]), expected[21:])
