# SPDX-License-Identifier: Apache-2.0
"""Text to video: the models of the Wan family, under any of the systems that run them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.arguments import integer
from ardiff_engine.conditions import UMT5
from ardiff_engine.device import usable_device
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.errors import ConfigError
from ardiff_engine.media import Clip
from ardiff_engine.models import VideoModel
from ardiff_engine.models.wan import WanExperts, WanTransformer
from ardiff_engine.models.wan.ulysses import over_processes
from ardiff_engine.models.wan.video import PICTURES
from ardiff_engine.pipeline import inputs
from ardiff_engine.pipeline import output as outputs
from ardiff_engine.pipeline.decoding import batch_pictures, stream_pictures
from ardiff_engine.pipeline.guided import Scales, branches_of, checked_scales
from ardiff_engine.pipeline.image_encoder import PictureEncoder
from ardiff_engine.pipeline.inputs import Picture, Video
from ardiff_engine.pipeline.kept_engine import KeptEngine
from ardiff_engine.pipeline.memory import beside_pages, check_frames, check_loading, least_memory
from ardiff_engine.pipeline.output import Given, OutputType, StepInfo, VideoOutput
from ardiff_engine.pipeline.parts import VideoParts, check_inputs, takes_picture
from ardiff_engine.pipeline.pixels import (
    Pixels,
    Size,
    VideoVAE,
    checked_size,
    in_tiles,
    latents_of,
)
from ardiff_engine.pipeline.placed import Placed
from ardiff_engine.pipeline.prompts import Prompt, Prompts, Timed, listed, timed
from ardiff_engine.pipeline.systems import asked_latents, check_fits, system_named, with_scheduler, with_steps
from ardiff_engine.pipeline.video_job import VideoJob
from ardiff_engine.pipeline.video_stream import PromptSwitches, VideoStream, switch_ticks
from ardiff_engine.systems import System

SIZE = (480, 832)
LATENTS_AHEAD = 2
"""Of a stream's reader: each is four pictures, and a new prompt comes after them."""


class TextToVideoPipeline(Placed):
    """Transformer, autoencoder, text encoder and a system: prompts to videos.

    `Pipeline.from_pretrained(folder, system="self-forcing")` makes it. `pipe("a cat")` makes finished videos,
    `pipe.stream("a cat")` gives frames as they become clean. All share one engine, which the pipeline keeps.

    prompts: encodes texts, once each; its encoder is loaded for the first new one. `pipe.prompts.unload()`
    takes it out of memory.
    """

    def __init__(
        self,
        transformer: WanTransformer | WanExperts,
        vae: VideoVAE,
        system: str | System,
        text: UMT5 | Callable[[], UMT5] | None = None,
        see: PictureEncoder | None = None,
        tile: Size | None = None,
    ) -> None:
        """text: an encoder, or what loads it; None: prompts are given as embeddings. see: for models that
        take CLIP's view of a picture. tile: rows and columns of latents that are decoded at a time, for large
        frames; None: whole ones.

        ConfigError: an unknown system, or one that this network cannot run; an autoencoder of other latents.
        """
        config = transformer.config
        check_inputs(transformer)
        if vae.channels != config.out_channels:
            raise ConfigError(
                f"the autoencoder has latents of {vae.channels} channels, the transformer makes "
                f"{config.out_channels}: they belong to different models."
            )
        self.transformer, self.vae = transformer.eval(), vae.eval()
        self.system = system_named(system)
        check_fits(self.system, transformer)
        in_tiles(vae, tile)  # refuses tiles that cannot be
        self.pixels = Pixels(vae, tile)
        load = (lambda: text) if isinstance(text, UMT5) else text
        self.prompts = Prompts(load, (config.text_tokens, config.text_dim))
        self._see = see
        self._network: VideoModel = self.transformer
        self._kept = KeptEngine()

    def __repr__(self) -> str:
        millions = sum(weight.numel() for weight in self.transformer.parameters()) / 1e6
        facts = f"{self.system.name}, {millions:.1f} M weights, {self.dtype}, {self.device}"
        return f"<TextToVideoPipeline: {facts}>"

    # --- loading

    @classmethod
    @ordinary_mode()
    def from_parts(
        cls,
        parts: VideoParts,
        system: str | System,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TextToVideoPipeline:
        """Loads what `find_parts` has found. The autoencoder is float32 whatever `dtype`.

        ConfigError, before any weight is read: a system that does not fit the network, or less memory than
        the parts and the smallest video take.
        """
        chosen = with_scheduler(system_named(system), parts.scheduler)
        place = usable_device(device)
        check_inputs(parts.empty_transformer())
        check_fits(chosen, parts.empty_transformer())
        check_loading(least_memory(parts, chosen, dtype=dtype), place)
        vae = parts.load_vae(place)
        transformer = parts.load_transformer(place, dtype)
        see = None if parts.image is None else parts.image.load(place, dtype)
        pipe = cls(transformer, vae, chosen, see=see, tile=parts.tile)
        pipe.prompts = cls.prompts_of(parts, device=place, dtype=dtype)
        return pipe

    @staticmethod
    def prompts_of(
        parts: VideoParts, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Prompts:
        """The text side alone; the encoder is loaded for the first prompt."""
        config, load = parts.transformer.config, None
        if parts.text is not None:
            tokens = config.text_tokens
            load = partial(UMT5.from_pretrained, parts.text, device=device, dtype=dtype, tokens=tokens)
        return Prompts(load, (config.text_tokens, config.text_dim))

    def over_processes(
        self, group: dist.ProcessGroup | None = None, *, branches: int = 1
    ) -> TextToVideoPipeline:
        """Run the transformer over the processes of a group, all of them if None, which make the same calls
        with the same seed and get the whole videos. branches: parts into which the branches of guidance are
        shared (`BranchShares`); the processes of each share the heads (`UlyssesWan`).

        ConfigError: no group, one that cannot be shared so.
        """
        if not isinstance(self.transformer, WanTransformer):
            raise ConfigError("over_processes: got two transformers, expected one.")
        self._network = over_processes(self.transformer, group, branches)
        check_fits(self.system, self._network)
        return self

    @property
    def size_multiple(self) -> Size:
        """What divides height and width of a video."""
        rows, columns = self.transformer.config.patch[1:]
        return self.vae.scale * rows, self.vae.scale * columns

    # --- generating

    @ordinary_mode()
    def __call__(
        self,
        prompt: Timed | Sequence[Timed],
        num_frames: int = 81,
        *,
        size: Size = SIZE,
        negative_prompt: Prompt | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_inference_steps: int | None = None,
        seed: int | None = None,
        first_video: int = 0,
        image: Picture | None = None,
        video: Video | None = None,
        given: Given = "pixels",
        latents: torch.Tensor | None = None,
        output_type: OutputType = "pt",
        progress: bool = True,
        callback_on_step_end: Callable[[StepInfo], None] | None = None,
    ) -> VideoOutput:
        """Make a video of each prompt, all in one batch.

        Args:
            prompt: a text, its embedding [at most text_tokens, text_dim], or {frame: prompt} for prompts that
                change on the way; a list of them is a batch. A new prompt holds from the first block on that
                begins at its frame or later; the system says what it does to the frames before.
            num_frames: 1 + 4k, given frames included, whole blocks of the system.
            size: height and width.
            negative_prompt: what guidance leads away from, "" if not given.
            guidance_scale: g in out_negative + g (out - out_negative); the system's own if not given. 1
                switches guidance off.
            guidance_scale_2: of the transformer for low noise, for models with two; the same if not given.
            num_inference_steps: where the system has no list of steps of its own.
            seed: key of all noise, 64 bits; None draws one, which `out.seed` tells.
            first_video: video k of a batch comes out again alone with `seed=out.seed, first_video=k` and its
                prompt.
            image: the first frame: a PIL picture, an array [H, W, 3], or a path. Image-to-video models need
                one, with any system.
            video: what all videos continue, 1 + 4k frames: as for AR-Diffusion's pipeline. Both are resized
                to cover `size`, and cropped.
            given: "pixels" shows given frames as they are, "decoded" as the autoencoder gives them back.
            latents: starting noise [videos, latents - given ones, channels, height / 8, width / 8].
            output_type: form of `out.frames`: "pt", "np" or "pil". `out.latents`: [videos, latents, channels,
                height / 8, width / 8].

        Raises:
            ConfigError, PlanError, TensorError, MediaError: arguments, before anything is computed.
            NumericalError, ArdiffError: what goes wrong later.
        """
        started = time.perf_counter()
        prompts, _ = listed(prompt)
        inputs.check_counts(num_frames, len(prompts), first_video)
        inputs.check_choice("output_type", output_type, OutputType)
        inputs.check_choice("given", given, Given)
        seed = inputs.chosen_seed(seed, shared=self._network is not self.transformer)
        job = self._job(num_frames, size, num_inference_steps, image, video)
        starts = job.starts(latents, len(prompts), self.vae.channels)
        requests = [
            self._request(
                job,
                own,
                negative_prompt,
                self._scales(guidance_scale, guidance_scale_2, negative_prompt),
                seed=seed,
                noise_stream=first_video + i,
                latents=None if starts is None else starts[i],
                on_step=callback_on_step_end and partial(_report, callback_on_step_end, i),
            )
            for i, own in enumerate(prompts)
        ]
        engine, streams = self._submit(requests)
        before, passes = engine.stats(), streams[0].num_ticks
        with tqdm(total=passes, desc="passes", unit="pass", disable=not progress) as bar:
            videos = batch_pictures(engine, streams, self.pixels, job.prefix, bar)
        if job.clip is not None and job.prefix is not None:
            shown = torch.tensor(job.clip.frames)
            if given == "decoded":
                shown = self.pixels.decoder().push(job.prefix)
            videos = [torch.cat([shown, video]) for video in videos]
        return VideoOutput(
            frames=outputs.in_form(torch.stack(videos), output_type),
            latents=torch.stack([stream.result() for stream in streams]).cpu(),
            seed=seed,
            first_video=first_video,
            fps=float(self.system.fps if job.clip is None or job.clip.fps is None else job.clip.fps),
            stats=engine.stats().since(before),
            seconds=time.perf_counter() - started,
        )

    @ordinary_mode()
    def stream(
        self,
        prompt: Timed,
        num_frames: int | None = None,
        *,
        size: Size = SIZE,
        negative_prompt: Prompt | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_inference_steps: int | None = None,
        seed: int | None = None,
        first_video: int = 0,
        image: Picture | None = None,
        video: Video | None = None,
    ) -> VideoStream:
        """Frames as they become clean, as `VideoFrame`s; a latent brings four at a time, the first one.

        Arguments are those of a call, and checked now. num_frames: None never ends. `set_prompt` of the
        stream changes the prompt on the way. Leaving the loop cancels it. While frames are decoded, the
        passes of the next ones run; nothing runs while the caller is busy with a frame.
        """
        if len(listed(prompt)[0]) != 1:
            raise ConfigError("prompt: a stream has one; open one stream for each prompt.")
        job = self._job(num_frames, size, num_inference_steps, image, video)
        request = self._request(
            job,
            prompt,
            negative_prompt,
            self._scales(guidance_scale, guidance_scale_2, negative_prompt),
            seed=inputs.chosen_seed(seed, shared=self._network is not self.transformer),
            noise_stream=integer("first_video", first_video, 0),
            max_ahead=LATENTS_AHEAD,
        )
        engine, (stream,) = self._submit([request])
        frames = stream_pictures(engine, stream, self.pixels, job.prefix, job.given, LATENTS_AHEAD)
        return VideoStream(frames, stream, partial(self._condition, job), self.system.on_prompt)

    # --- private

    def _submit(self, requests: Sequence[Request]) -> tuple[Engine, list[Stream]]:
        beside = beside_pages(self._network, self.pixels, requests)
        return self._kept.submit(self._network, self.transformer, requests, beside=beside)

    def _job(
        self,
        num_frames: int | None,
        size: Size,
        steps: int | None,
        image: Picture | None,
        video: Video | None,
    ) -> VideoJob:
        height, width = checked_size(size, self.size_multiple)
        rows = (height // self.vae.scale, width // self.vae.scale)
        check_frames(self.pixels, rows, self.device)
        clip = inputs.given_frames(image, video, (height, width))
        system = with_steps(self.system, steps)
        if takes_picture(self.transformer):
            return self._picture_job(num_frames, rows, clip, system)
        given, spec = 0 if clip is None else latents_of(len(clip.frames)), self.transformer.spec
        latents, system = asked_latents(num_frames, system, spec, given, first_clean=self.vae.residual)
        prefix = None if clip is None else self.pixels.encode(torch.tensor(clip.frames))
        return VideoJob(latents, rows, system, clip, prefix, None)

    def _picture_job(self, num_frames: int | None, size: Size, clip: Clip | None, system: System) -> VideoJob:
        """An image-to-video model draws the first picture again, like all others."""
        if clip is None or len(clip.frames) != 1:
            raise ConfigError("this is an image-to-video model: give the first picture, image=….")
        latents, system = asked_latents(num_frames, system, self.transformer.spec, 0, first_clean=False)
        picture, seen = torch.tensor(clip.frames[0]), None
        if self.transformer.config.image_dim is not None:
            if self._see is None:
                raise ConfigError("this model takes CLIP's view of the picture: give the pipeline see=….")
            seen = self._see.tokens(picture)
        return VideoJob(latents, size, system, None, None, self.pixels.beside(picture), seen)

    def _scales(self, first: float | None, second: float | None, negative: Prompt | None) -> Scales:
        scale = self.system.guidance if first is None else first
        return checked_scales(self.transformer, scale, second, negative)

    def _condition(self, job: VideoJob, prompt: Prompt) -> torch.Tensor:
        embedding = self.prompts.encode(prompt)
        return embedding if job.seen is None else self.transformer.with_picture(embedding, job.seen)

    def _request(
        self,
        job: VideoJob,
        prompt: Timed,
        negative_prompt: Prompt | None,
        scales: Scales,
        *,
        seed: int,
        noise_stream: int,
        latents: torch.Tensor | None = None,
        on_step: Callable[[Stream], None] | None = None,
        max_ahead: int | None = None,
    ) -> Request:
        (_, first), *later = timed(prompt)
        ticks = switch_ticks(job.plan, [frame for frame, _ in later])
        negative = None
        if scales != (1, 1):
            negative = self._condition(job, "" if negative_prompt is None else negative_prompt)
        request = Request(
            num_frames=job.latents,
            size=job.size,
            plan=job.system.plan,
            condition=self._condition(job, first),
            negative_condition=negative,
            guidance_scale=scales[0],
            seed=seed,
            noise_stream=noise_stream,
            latents=latents,
            prefix=job.prefix,
            frame_inputs=None if job.beside is None else {PICTURES: job.beside},
            solver=job.system.solver,
            memory=job.system.memory,
            on_step=on_step,
            max_ahead=max_ahead,
        )
        if isinstance(self.transformer, WanExperts) and scales[0] != scales[1]:
            own = branches_of(request.condition, negative, scales, job.system.solver, self.transformer)
            request = replace(
                request, branches=own, condition=None, negative_condition=None, guidance_scale=1.0
            )
        if not later:
            return request
        changes = {tick: self._condition(job, own) for tick, (_, own) in zip(ticks, later, strict=True)}
        return replace(request, on_step=PromptSwitches(changes, self.system.on_prompt, on_step))


def _report(callback: Callable[[StepInfo], None], video: int, stream: Stream) -> None:
    callback(StepInfo(video, stream.ticks_done, stream.num_ticks))
