# SPDX-License-Identifier: Apache-2.0
"""Transformer, autoencoder and noise schedule: one call for a video, or frames as they become clean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import nn
from tqdm.auto import tqdm

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Request, Stream
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory import MemoryPolicy, RecomputedWindow
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.registry import kind_of
from ardiff_engine.pipeline import inputs
from ardiff_engine.pipeline import output as outputs
from ardiff_engine.pipeline.decoding import MOST_UNREAD, batch_pictures, stream_pictures
from ardiff_engine.pipeline.files import SCHEDULER_FILE, find_folder, load_models, save_pipeline
from ardiff_engine.pipeline.inputs import Video
from ardiff_engine.pipeline.kept_engine import KeptEngine
from ardiff_engine.pipeline.output import Given, OutputType, StepInfo, VideoFrame, VideoOutput
from ardiff_engine.pipeline.parts import PathName, find_parts, holds_video_parts
from ardiff_engine.pipeline.placed import Placed
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.systems import System, names
from ardiff_engine.weights.scheduler_file import read_schedule


class Pipeline(Placed):
    """Transformer, autoencoder and noise schedule: what turns noise into videos.

    `Pipeline.from_pretrained("moving-digits")` loads the bundled model. `pipe(...)` makes finished videos,
    `pipe.stream(...)` gives frames as they become clean. All of them share one engine, which the pipeline
    keeps, and which holds as many pages as were ever needed at once. `pipe.to(...)` gives it back.
    """

    def __init__(
        self, transformer: nn.Module, vae: nn.Module, schedule: NoiseSchedule, prediction: str = "x0"
    ) -> None:
        """transformer, vae: of kinds in `models.registry`. prediction: what the transformer was trained to
        predict, see `solvers.DDIM`. ConfigError where the autoencoder's latents are not those of the
        transformer."""
        make_codec = kind_of(vae).codec
        if make_codec is None or kind_of(transformer).codec is not None:
            raise ConfigError(
                f"A pipeline takes a transformer and an autoencoder, not {type(transformer).__name__} and "
                f"{type(vae).__name__}."
            )
        self.codec = make_codec(vae, cast(VideoModel, transformer).spec)
        DDIM(schedule, num_inference_steps=1, prediction=prediction)  # refuses an unknown prediction now
        transformer.eval()
        vae.eval()
        self.transformer: Any = transformer
        self.vae: Any = vae
        self.schedule = schedule
        self.prediction = prediction
        self._kept = KeptEngine()

    def __repr__(self) -> str:
        spec, size = self.transformer.spec, self.codec.image_size
        classes = getattr(self.transformer.config, "num_classes", None) or "no"
        millions = sum(weight.numel() for weight in self.transformer.parameters()) / 1e6
        return (
            f"<Pipeline: {size} x {size} pictures, window of {spec.num_frames} frames, "
            f"{classes} classes, {millions:.1f} M weights, {self.dtype}, {self.device}>"
        )

    # --- loading

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = ...,
        dtype: torch.dtype | None = ...,
        torch_dtype: torch.dtype | None = ...,
    ) -> Pipeline: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        system: str | System,
        device: str | torch.device = ...,
        dtype: torch.dtype | None = ...,
        torch_dtype: torch.dtype | None = ...,
        transformer: PathName | None = ...,
        vae: PathName | None = ...,
        text: PathName | Literal[False] | None = ...,
        lora: PathName | Sequence[PathName] | None = ...,
        tile: tuple[int, int] | None = ...,
    ) -> TextToVideoPipeline: ...

    @classmethod
    @ordinary_mode()
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        system: str | System | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        transformer: PathName | None = None,
        vae: PathName | None = None,
        text: PathName | Literal[False] | None = None,
        lora: PathName | Sequence[PathName] | None = None,
        tile: tuple[int, int] | None = None,
    ) -> Pipeline | TextToVideoPipeline:
        """Load a pipeline.

        Args:
            name: a bundled model ("moving-digits"), or a folder that `save_pretrained` or training wrote. Of
                a text-to-video model: a folder in diffusers' layout, or with files of official names.
            system: how a text-to-video model is run, such as "wan" or "self-forcing"; the result is a
                `TextToVideoPipeline` then.
            device: of the models.
            dtype: of transformer and text encoder, float32 if not given. The autoencoder stays float32.
            torch_dtype: another name of `dtype`.
            transformer, vae, text: files or folders in place of those in the folder, for text-to-video
                models: a distilled transformer is often one file; a light autoencoder (TAEHV) decodes much
                faster. text=False loads no text encoder; prompts
                are embeddings then.
            lora: merged into the transformer, see `weights.load_lora`; two for models with two transformers,
                that of high noise first.
            tile: rows and columns of latents that the autoencoder decodes at a time, such as (32, 32): large
                frames take less memory then. Tiles overlap, and are blended.

        Raises:
            CheckpointError: no such model, damaged or missing files, models of another kind.
            ConfigError: an unknown device or dtype, both names of the dtype, parts that do not fit each other
                or, told before any weight is read, the memory that is free.
        """
        dtype = inputs.chosen_dtype(dtype, torch_dtype)
        if system is not None:
            parts = find_parts(name, transformer=transformer, vae=vae, text=text, lora=lora, tile=tile)
            return TextToVideoPipeline.from_parts(parts, system, device=device, dtype=dtype)
        if any(part is not None for part in (transformer, vae, text, lora, tile)) or holds_video_parts(name):
            raise ConfigError(
                f"{name} holds a text-to-video model: say how it is run, system=… of {', '.join(names())}."
            )
        folder = find_folder(name)
        schedule, prediction = read_schedule(folder / SCHEDULER_FILE)
        return cls(*load_models(folder, device, dtype), schedule, prediction)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write transformer/, vae/ and scheduler.json; each file appears whole or not at all."""
        save_pipeline(Path(folder), self.transformer, self.vae, self.schedule, self.prediction)

    # --- generating

    @ordinary_mode()
    def encode(self, video: Video) -> torch.Tensor:
        """A video, as a call takes it -> clean float32 latents [T, tokens, channels]: a `Request.prefix`."""
        return self.codec.encode(torch.tensor(inputs.given_clip(video, self.codec.image_size).frames))

    @ordinary_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents [T, tokens, channels] of a video from its first frame on, as `Stream.result` gives
        them -> uint8 [T, H, W, 3] on the CPU. Frames that come one by one: `codec.decoder()`."""
        return self.codec.decoder().push(inputs.clean_latents(latents, self.transformer.spec))

    @ordinary_mode()
    def __call__(
        self,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        lag: int = 5,
        *,
        num_videos: int = 1,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        seed: int | None = None,
        first_video: int = 0,
        class_id: int | Sequence[int] | None = None,
        video: Video | None = None,
        given: Given = "pixels",
        latents: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        memory: MemoryPolicy | None = None,
        output_type: OutputType = "pt",
        progress: bool = True,
        callback_on_step_end: Callable[[StepInfo], None] | None = None,
    ) -> VideoOutput:
        """Make `num_videos` videos of `num_frames` frames in one batch.

        Args:
            num_frames: frames of each video, those of `video` included.
            num_inference_steps: denoising steps of each frame, 1 to the schedule's number of timesteps.
            lag: steps by which a frame runs behind the one before it: 0 = all frames together,
                num_inference_steps = one after the other. Videos longer than the model's window of W frames
                need lag * W >= num_inference_steps.
            guidance_scale: g in out_null + g * (out_class - out_null); 1 switches guidance off.
            eta: noise that DDIM adds at every step, 0 (none) to 1 (as in DDPM).
            seed: key of all noise, 64 bits; the same seed gives the same videos. None draws one from
                torch's default generator: another one in every call, unless `torch.manual_seed` was called.
            first_video: the videos of a seed are numbered, and this call makes those from `first_video` on.
                Video k of a batch comes out again alone with `seed=out.seed, first_video=k`.
            class_id: one for all videos, or one per video; None: no class, or the model's only context.
            video: what all videos continue: a path, uint8 or floating (0 to 1) frames [T, H, W, 3], a list
                of PIL pictures, or `media.read_clip(path, max_frames)`, which knows the frame rate. The
                shorter side is resized to the model's, the longer one cropped.
            given: "pixels" shows the given frames as they are; "decoded" shows them as the autoencoder gives
                them back, so that no seam is seen where the generated ones begin.
            latents: starting noise [num_videos, num_frames - given frames, tokens, channels].
            generator: draws the starting noise: one for all videos in turn, or one per video.
            memory: what frames remember; by default `memory.RecomputedWindow` of the model's length.
            output_type: form of `out.frames`: "pt", "np" or "pil", see `VideoOutput`.
            progress: show a progress bar.
            callback_on_step_end: called with a `StepInfo` after each pass of each video.

        Raises:
            ConfigError, PlanError: arguments out of range, or that do not go together.
            TensorError, MediaError: a class, latents or a video of the wrong kind or shape.
            NumericalError: NaN or infinity, given or computed.
            ArdiffError: a callback failed; its error is the cause.

            A video that fails raises its error here, and the others are given up.
        """
        started = time.perf_counter()
        inputs.check_counts(num_frames, num_videos, first_video)
        inputs.check_choice("output_type", output_type, OutputType)
        inputs.check_choice("given", given, Given)
        seed = inputs.chosen_seed(seed)
        clip = None if video is None else inputs.given_clip(video, self.codec.image_size)
        prefix = None if clip is None else self.codec.encode(torch.tensor(clip.frames))
        classes = inputs.class_per_video(class_id, num_videos)
        fresh = num_frames - (0 if clip is None else len(clip.frames))
        starts = inputs.starting_noise(latents, generator, num_videos, fresh, self.transformer.spec)
        solver, policy = self._solver(num_inference_steps, eta), self._memory(memory)

        requests = [
            Request(
                num_frames=num_frames,
                lag=lag,
                condition=classes[i],
                guidance_scale=guidance_scale,
                seed=seed,
                noise_stream=first_video + i,
                latents=None if starts is None else starts[i],
                prefix=prefix,
                solver=solver,
                memory=policy,
                on_step=callback_on_step_end and partial(_report, callback_on_step_end, i),
            )
            for i in range(num_videos)
        ]
        engine, streams = self._kept.submit(self.transformer, self.transformer, requests)
        before, passes = engine.stats(), streams[0].num_ticks
        with tqdm(total=passes, desc="passes", unit="pass", disable=not progress) as bar:
            videos = batch_pictures(engine, streams, self.codec, prefix, bar)
        if clip is not None and prefix is not None:
            shown = torch.tensor(clip.frames) if given == "pixels" else self.decode(prefix)
            videos = [torch.cat([shown, video]) for video in videos]
        return VideoOutput(
            frames=outputs.in_form(torch.stack(videos), output_type),
            latents=torch.stack([stream.result() for stream in streams]).cpu(),
            seed=seed,
            first_video=first_video,
            fps=outputs.DEFAULT_FPS if clip is None or clip.fps is None else clip.fps,
            stats=engine.stats().since(before),
            seconds=time.perf_counter() - started,
        )

    @ordinary_mode()
    def stream(
        self,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        lag: int = 5,
        *,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        seed: int | None = None,
        class_id: int | None = None,
        video: Video | None = None,
        generator: torch.Generator | None = None,
        memory: MemoryPolicy | None = None,
    ) -> Iterator[VideoFrame]:
        """Frames as they become clean, as `VideoFrame`s.

        Arguments are checked now, not at the first frame. Leaving the loop cancels the stream. While a frame
        is decoded, the passes of the next ones run; nothing runs while the caller is busy with a frame.

        Args:
            num_frames: frames of the video, those of `video` included, which are not given again; None never
                ends.
            num_inference_steps, lag: of each frame, as in a call. Videos longer than the model's window of W
                frames, endless ones too, need lag * W >= num_inference_steps.
            guidance_scale, eta: as in a call; 1 and 0 switch guidance and the noise of every step off.
            seed: key of all noise; None draws one, which every frame names (`frame.seed`).
            class_id: None: no class, or the model's only context.
            video: what is continued, in any form that a call takes.
            generator: draws the starting noise, frame by frame.
            memory: what frames remember; by default `memory.RecomputedWindow` of the model's length.

        Raises:
            ConfigError, PlanError, TensorError, MediaError: arguments, as in a call.
            NumericalError, ArdiffError: what goes wrong later; the loop raises it, after the frames before.
        """
        seed = inputs.chosen_seed(seed)
        prefix = None if video is None else self.encode(video)
        request = Request(
            num_frames=num_frames,
            lag=lag,
            condition=class_id,
            guidance_scale=guidance_scale,
            seed=seed,
            generator=generator,
            prefix=prefix,
            solver=self._solver(num_inference_steps, eta),
            memory=self._memory(memory),
            max_ahead=MOST_UNREAD,
        )
        engine, (stream,) = self._kept.submit(self.transformer, self.transformer, [request])
        return stream_pictures(engine, stream, self.codec, prefix, 0 if prefix is None else len(prefix))

    # --- private

    def _solver(self, steps: int, eta: float) -> DDIM:
        return DDIM(self.schedule, num_inference_steps=steps, eta=eta, prediction=self.prediction)

    def _memory(self, memory: MemoryPolicy | None) -> MemoryPolicy:
        return RecomputedWindow(self.transformer.spec.num_frames) if memory is None else memory


def _report(callback: Callable[[StepInfo], None], video: int, stream: Stream) -> None:
    callback(StepInfo(video, stream.ticks_done, stream.num_ticks))
