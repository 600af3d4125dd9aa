# SPDX-License-Identifier: Apache-2.0
"""Transformer, autoencoder and noise schedule: one call for a video, or frames as they become clean."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Engine, EngineStats, LatentFrame, Request, Stream
from ardiff_engine.engine.admission import admit
from ardiff_engine.engine.decode_worker import DecodeWorker
from ardiff_engine.engine.frame_decoder import FrameDecoder, to_images
from ardiff_engine.errors import CheckpointError, explain
from ardiff_engine.files import write_atomic
from ardiff_engine.memory import MemoryPolicy, RecomputedWindow
from ardiff_engine.models import ARDiffusionTransformer, TiTok, check_cells, regroup, to_tokens
from ardiff_engine.pipeline_inputs import Video, check_counts, class_per_video, read_clip, starting_noise
from ardiff_engine.weights import load_model, save_model

ASSETS = Path(__file__).parent / "assets"
SCHEDULER_FILE = "scheduler.json"
MOST_UNREAD = 8
"""Pieces of video that may be decoded, or wait for it, before the engine does."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoOutput:
    """frames: uint8 [B, T, H, W, 3]; latents: fp32 [B, T, tokens, channels]; seconds: of the call."""

    frames: torch.Tensor
    latents: torch.Tensor
    stats: EngineStats
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """image: uint8 [H, W, 3]; latent: [tokens, channels]; seconds: since the stream began."""

    index: int
    image: torch.Tensor
    latent: torch.Tensor
    seconds: float


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Given to `callback_on_step_end` after every tick."""

    video: int
    tick: int
    num_ticks: int | None


class Pipeline:
    """`from_pretrained("moving-digits")` for the bundled model, or a folder written by `save_pretrained`."""

    def __init__(
        self, transformer: ARDiffusionTransformer, vae: TiTok, schedule: NoiseSchedule, prediction: str = "x0"
    ) -> None:
        config = transformer.config
        check_cells(
            "transformer and autoencoder do not fit",
            (config.tokens_per_frame, config.channels),
            (vae.config.num_latent_tokens, vae.config.token_size),
        )
        DDIM(schedule, num_inference_steps=1, prediction=prediction)  # refuses an unknown prediction now
        self.transformer = transformer.eval()
        self.vae = vae.eval()
        self.schedule = schedule
        self.prediction = prediction

    # --------------------------------------------------------------------------------------------------
    # loading

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Pipeline:
        """A bundled model, or a folder with transformer/, vae/, scheduler.json. The VAE stays fp32."""
        folder = ASSETS / name if (ASSETS / name / SCHEDULER_FILE).is_file() else Path(name)
        if not (folder / SCHEDULER_FILE).is_file():
            bundled = sorted(path.parent.name for path in ASSETS.glob(f"*/{SCHEDULER_FILE}"))
            raise CheckpointError(
                explain(
                    "pipeline",
                    got=repr(str(name)),
                    expected=f"a folder with {SCHEDULER_FILE}, or one of {bundled}",
                    fix="Check the path. Official files: weights.load_ar_diffusion and weights.load_titok.",
                )
            )
        try:
            scheduler = json.loads((folder / SCHEDULER_FILE).read_text())
            schedule = NoiseSchedule.from_config(scheduler["schedule"])
            prediction = scheduler["prediction"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                explain(
                    f"{folder / SCHEDULER_FILE}",
                    got=repr(error),
                    expected='{"schedule": {...}, "prediction": ...}',
                    fix="Write it again with save_pretrained.",
                )
            ) from error
        transformer = load_model(folder / "transformer", device=device, dtype=dtype)
        vae = load_model(folder / "vae", device=device, dtype=torch.float32)
        if not isinstance(transformer, ARDiffusionTransformer) or not isinstance(vae, TiTok):
            raise CheckpointError(
                explain(
                    f"models in {folder}",
                    got=f"{type(transformer).__name__}, {type(vae).__name__}",
                    expected="an AR-Diffusion transformer and a TiTok autoencoder",
                    fix="Check transformer/config.json and vae/config.json.",
                )
            )
        return cls(transformer, vae, schedule, prediction)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write transformer/, vae/ and scheduler.json; each file appears whole or not at all."""
        folder = Path(folder)
        save_model(self.transformer, folder / "transformer")
        save_model(self.vae, folder / "vae")
        text = json.dumps({"schedule": self.schedule.to_config(), "prediction": self.prediction}, indent=2)
        write_atomic(folder / SCHEDULER_FILE, text.encode() + b"\n")

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    # --- generating

    def encode(self, video: Video) -> torch.Tensor:
        """uint8 [T, H, W, 3] or a path -> clean latents [T, tokens, channels]: a `Request.prefix`."""
        return self._encode(read_clip(video, self.vae.config.image_size))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents [T, tokens, channels] of a video from its first frame on, as `Stream.result` gives
        them -> uint8 [T, H, W, 3] on the CPU. Frames that come one by one: `engine.frame_decoder`."""
        return FrameDecoder(self.vae)(latents)

    def __call__(
        self,
        *,
        num_frames: int = 16,
        num_videos: int = 1,
        num_inference_steps: int = 50,
        lag: int = 5,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        seed: int = 0,
        class_id: int | Sequence[int] | None = None,
        video: Video | None = None,
        latents: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        memory: MemoryPolicy | None = None,
        progress: bool = True,
        callback_on_step_end: Callable[[StepInfo], None] | None = None,
    ) -> VideoOutput:
        """Generate `num_videos` videos of `num_frames` frames in one batch.

        lag: 0 = all frames together, num_inference_steps = one after the other.
        video: uint8 [T, H, W, 3] or a path that every video continues; num_frames counts it.
        class_id: one for all or one per video; None: the model's own context.
        seed: key of all noise; the videos of one call share it and differ by their index.
        latents: starting noise [num_videos, num_frames - given, tokens, channels].
        generator: torch.Generator for the starting noise, one for all videos in turn or one per video.
        memory: what frames remember; `RecomputedWindow` of the model's length by default.

        A video that fails raises its error here, and the others are given up.
        """
        started = time.perf_counter()
        check_counts(num_frames, num_videos)
        given = None if video is None else read_clip(video, self.vae.config.image_size)
        prefix = None if given is None else self._encode(given)
        classes = class_per_video(class_id, num_videos)
        fresh = num_frames - (0 if given is None else len(given))
        starts = starting_noise(latents, generator, num_videos, fresh, self.transformer.spec)

        def on_step(index: int) -> Callable[[Stream], None]:
            def report(stream: Stream) -> None:
                if index == 0:
                    bar.update(stream.ticks_done - bar.n)
                if callback_on_step_end is not None:
                    callback_on_step_end(StepInfo(index, stream.ticks_done, stream.feeder.plan.num_ticks))

            return report

        requests = [
            Request(
                num_frames=num_frames,
                lag=lag,
                condition=classes[i],
                guidance_scale=guidance_scale,
                seed=seed,
                noise_stream=i,
                latents=None if starts is None else starts[i],
                prefix=prefix,
                on_step=on_step(i),
            )
            for i in range(num_videos)
        ]
        engine = self._engine(requests, num_inference_steps, eta, memory)
        streams = [engine.submit(request) for request in requests]
        decoders = [FrameDecoder(self.vae, prefix) for _ in streams]
        images: list[list[torch.Tensor]] = [[] if given is None else [given] for _ in streams]

        def decode(piece: tuple[int, torch.Tensor]) -> tuple[int, torch.Tensor]:
            return piece[0], decoders[piece[0]](piece[1])

        bar = tqdm(total=streams[0].feeder.plan.num_ticks, desc="ticks", disable=not progress)
        with bar, DecodeWorker(decode, MOST_UNREAD, self.device) as worker:
            while engine.step():
                for index, stream in enumerate(streams):
                    stream.raise_if_failed()
                    if stream.frames_ready:
                        latent = torch.stack([frame.latent for frame in stream.take_ready()])
                        worker.submit((index, latent))
                while worker.ready:
                    _keep(worker.take(), images)
            for stream in streams:
                stream.raise_if_failed()
            while worker.unread:
                _keep(worker.take(), images)
        return VideoOutput(
            frames=torch.stack([torch.cat(pictures) for pictures in images]),
            latents=torch.stack([stream.result() for stream in streams]).cpu(),
            stats=engine.stats(),
            seconds=time.perf_counter() - started,
        )

    def stream(
        self,
        *,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        lag: int = 5,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        seed: int = 0,
        class_id: int | None = None,
        video: Video | None = None,
        generator: torch.Generator | None = None,
        memory: MemoryPolicy | None = None,
    ) -> Iterator[VideoFrame]:
        """Frames as they become clean; `num_frames=None` never ends. Given frames are not repeated.

        Arguments are checked now, not at the first frame. Leaving the loop cancels the stream. While a frame
        is decoded, the ticks of the next ones run; nothing runs while the caller is busy with a frame.
        """
        prefix = None if video is None else self.encode(video)
        request = Request(
            num_frames=num_frames,
            lag=lag,
            condition=class_id,
            guidance_scale=guidance_scale,
            seed=seed,
            generator=generator,
            prefix=prefix,
        )
        engine = self._engine([request], num_inference_steps, eta, memory)
        return self._decoded(engine, engine.submit(request), prefix)

    def _decoded(self, engine: Engine, stream: Stream, prefix: torch.Tensor | None) -> Iterator[VideoFrame]:
        decoder, started = FrameDecoder(self.vae, prefix), time.perf_counter()
        latents: deque[LatentFrame] = deque()

        def decode(frame: LatentFrame) -> VideoFrame:
            # One at a time, also where several are there: a batch would round differently.
            image = decoder(frame.latent[None])[0]
            return VideoFrame(frame.index, image, frame.latent, time.perf_counter() - started)

        with DecodeWorker(decode, MOST_UNREAD, self.device) as worker:
            try:
                while True:
                    latents.extend(stream.take_ready())
                    while latents and worker.unread < MOST_UNREAD:
                        worker.submit(latents.popleft())
                    if worker.ready or (worker.unread and (latents or stream.done)):
                        yield worker.take()
                    elif stream.done:
                        stream.raise_if_failed()
                        return
                    else:
                        engine.step()
            finally:
                stream.cancel()

    # --------------------------------------------------------------------------------------------------
    # private

    def _engine(self, requests: list[Request], steps: int, eta: float, memory: MemoryPolicy | None) -> Engine:
        """An engine with exactly the pages that these requests can need."""
        spec = self.transformer.spec
        policy = memory if memory is not None else RecomputedWindow(spec.num_frames)
        pages = sum(admit(request, spec, policy, steps).need.most for request in requests)
        solver = DDIM(self.schedule, num_inference_steps=steps, eta=eta, prediction=self.prediction)
        return Engine(self.transformer, solver=solver, memory=policy, max_pages=pages)

    @torch.no_grad()
    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        weight = next(self.vae.parameters())
        images = to_images(frames, self.vae.config.image_size).to(weight.device, weight.dtype)
        tokens = self.transformer.config.tokens_per_frame
        return regroup(to_tokens(self.vae.encode(images[None]))[0], tokens).float()


def _keep(piece: tuple[int, torch.Tensor], images: list[list[torch.Tensor]]) -> None:
    index, pictures = piece
    images[index].append(pictures)
