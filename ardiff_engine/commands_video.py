# SPDX-License-Identifier: Apache-2.0
"""`ardiff generate`, `stream` and `info` for text-to-video models. What can be checked is checked before
anything heavy is loaded, and the text encoder is dropped before the transformer is read."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ardiff_engine import systems
from ardiff_engine.device import usable_device
from ardiff_engine.errors import ArdiffError, ConfigError
from ardiff_engine.media import Clip, check_target, export_video, open_video, open_writer, read_clip
from ardiff_engine.media.export import check_size
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.models.wan import WanExperts, WanTransformer
from ardiff_engine.parsing import read_json
from ardiff_engine.pipeline.guided import Scales, checked_scales
from ardiff_engine.pipeline.inputs import chosen_seed
from ardiff_engine.pipeline.memory import PartsMemory, check_memory, size_multiple, video_memory
from ardiff_engine.pipeline.parts import VideoParts, check_inputs, find_parts, takes_picture
from ardiff_engine.pipeline.pixels import Size, checked_latents, checked_size, frames_of, latents_of
from ardiff_engine.pipeline.prompts import Prompt, Timed, timed
from ardiff_engine.pipeline.systems import (
    asked_latents,
    check_fits,
    fitting,
    system_named,
    with_scheduler,
    with_steps,
)
from ardiff_engine.pipeline.text_to_video import SIZE, TextToVideoPipeline
from ardiff_engine.pipeline.video_stream import switch_ticks
from ardiff_engine.systems import System

FRAMES = 81
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FOREIGN = {"--lag": "lag", "--class": "class_id", "--plan-picture": "plan_picture"}
"""Options that only frame models know."""


@dataclass(frozen=True, slots=True)
class _Job:
    parts: VideoParts
    system: System
    prompt: Timed
    frames: int | None
    size: Size
    given: int
    fps: float
    device: torch.device
    dtype: torch.dtype
    seed: int


def wanted(options: argparse.Namespace) -> bool:
    """Whether the options are those of a text-to-video model."""
    return any(
        getattr(options, name) is not None
        for name in ("system", "prompt", "prompts", "negative_prompt", "guidance_2", "size", "image")
    )


def generate(options: argparse.Namespace) -> int:
    job = _job(options, FRAMES if options.frames is None else options.frames)
    _check_out(options, job, growing=False)
    pipe, prompt, negative = _loaded(options, job)
    started = time.perf_counter()
    out = pipe(prompt, job.frames or FRAMES, given=options.given, progress=not options.quiet,
               **_arguments(options, job, negative))  # fmt: skip
    seconds = time.perf_counter() - started
    target = export_video(out.frames[0], options.out, job.fps, scale=options.scale)
    if not options.quiet:
        print(f"{target}: {job.frames} frames in {seconds:.1f} s, seed {out.seed}")
    return 0


def stream(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    job = _job(options, options.frames)
    _check_out(options, job, growing=True)
    pipe, prompt, negative = _loaded(options, job)
    frames = pipe.stream(prompt, job.frames, **_arguments(options, job, negative))
    total = None if job.frames is None else job.frames - job.given
    writer = open_writer(options.out, job.fps, scale=options.scale)
    try:
        with writer:
            for frame in tqdm(frames, total=total, unit="frame", desc="streaming", disable=options.quiet):
                writer.write(frame.image)
    except KeyboardInterrupt:
        # The only way to end an endless stream, so not a failure.
        if job.frames is not None:
            raise
    finally:
        frames.close()
    if not options.quiet:
        print(f"{writer.path}: {writer.count} frames, seed {frames.seed}")
    return 0


def info(options: argparse.Namespace) -> int:
    """What a folder holds, which systems can run it, and the memory for so many streams."""
    parts = _parts(options)
    size = checked_size(SIZE if options.size is None else options.size, size_multiple(parts))
    model, dtype = parts.empty_transformer(), DTYPES[options.dtype]
    config, vae = parts.transformer.config, parts.empty_vae()
    names = fitting(model) if options.system is None else [system_named(options.system).name]
    memory: dict[str, Any] = {}
    of_parts = PartsMemory(parts, size, dtype)
    for name in names:
        system = with_scheduler(systems.get(name), parts.scheduler)
        try:
            frames = options.frames or _usual(system, model.spec)
            needed = of_parts.of(system, frames=frames, streams=options.streams)
        except ArdiffError as error:
            if options.system is not None:
                raise
            memory[name] = str(error)
        else:
            memory[name] = {part: held for part, held, _ in needed.rows()}
    text = None if parts.text is None else {"width": parts.text.width, "weights": parts.text.weights}
    facts = {
        "transformer": {
            "weights": sum(weight.numel() for weight in model.parameters()),
            "layers": config.depth, "width": config.width, "heads": config.heads,
            "channels": config.channels, "text_width": config.text_dim,
            "files": [str(own.file.path) for own in parts.transformers],
            "first_picture": takes_picture(model),
        },
        "autoencoder": {"channels": vae.channels, "scale": vae.scale, "file": str(parts.vae.file.path)},
        "text_encoder": text,
        "image_encoder": None if parts.image is None else {"weights": parts.image.weights},
        "scheduler": parts.scheduler.get("_class_name"),
        "size": list(size), "streams": options.streams, "dtype": options.dtype,
        "memory_bytes": memory,
    }  # fmt: skip
    print(json.dumps(facts, indent=2) if options.json else _rendered(facts))
    return 0


def _rendered(facts: Mapping[str, Any]) -> str:
    model, vae, text = facts["transformer"], facts["autoencoder"], facts["text_encoder"]
    height, width = facts["size"]
    streams = "1 stream" if facts["streams"] == 1 else f"{facts['streams']} streams"
    encoder = "none" if text is None else f"{text['weights'] / 1e6:.1f} M weights, width {text['width']}"
    image = facts["image_encoder"]
    lines = [
        f"transformer   {model['weights'] / 1e6:.1f} M weights, {model['layers']} layers, width "
        f"{model['width']}, {model['heads']} heads   {', '.join(model['files'])}",
        f"autoencoder   {vae['channels']} channels, {vae['scale']}x   {vae['file']}",
        f"text encoder  {encoder}",
        *([] if image is None else [f"image encoder {image['weights'] / 1e6:.1f} M weights"]),
        f"scheduler     {facts['scheduler'] or 'none'}",
        *(["first picture needed: --image PATH"] if model["first_picture"] else []),
        "",
        f"Memory for {streams} of {height} x {width}, {facts['dtype']}, in MiB:",
        f"  {'system':<24} {'all':>10} {'pages':>10}",
    ]
    for name, held in facts["memory_bytes"].items():
        if isinstance(held, str):
            lines.append(f"  {name:<24} {held}")
        else:
            lines.append(f"  {name:<24} {held['running'] / 2**20:10.1f} {held['pages'] / 2**20:10.1f}")
    return "\n".join(lines)


def _usual(system: System, spec: ModelSpec) -> int:
    """The number of pictures nearest to 81 that the system can make."""
    for frames in sorted(range(1, 2 * FRAMES, 4), key=lambda n: abs(n - FRAMES)):
        try:
            checked_latents(frames, system, spec)
        except ConfigError:
            continue
        return frames
    return FRAMES


def _parts(options: argparse.Namespace) -> VideoParts:
    return find_parts(
        options.model,
        transformer=options.transformer,
        vae=options.vae,
        text=options.text,
        lora=options.lora,
        tile=options.tile,
    )


def _job(options: argparse.Namespace, frames: int | None) -> _Job:
    for name, attribute in FOREIGN.items():
        if getattr(options, attribute, None) is not None:
            raise ConfigError(f"{name}: text-to-video models have none. Leave it out.")
    if options.system is None:
        able = ", ".join(fitting(_parts(options).empty_transformer()))
        raise ConfigError(f"--system: got none, expected how the model is run. It can be: {able}.")
    prompt, device = _prompt(options), usable_device(options.device)
    seed = chosen_seed(options.seed)
    system = system_named(options.system)
    parts = _parts(options)
    system = with_steps(with_scheduler(system, parts.scheduler), options.steps)
    model = parts.empty_transformer()
    check_inputs(model)
    check_fits(system, model)
    size = checked_size(SIZE if options.size is None else options.size, size_multiple(parts))
    given, fps = _given(options)
    if takes_picture(model):
        if options.image is None:
            raise ConfigError("--image: got none, and an image-to-video model needs the first picture.")
        given = 0  # it draws that picture again
    latents, system = asked_latents(
        frames, system, model.spec, latents_of(given) if given else 0, first_clean=parts.empty_vae().residual
    )
    switch_ticks(system.plan_of(latents), [frame for frame, _ in timed(prompt)[1:]])
    dtype = DTYPES[options.dtype]
    # A folder without a text encoder is told now.
    if parts.text is None:
        raise ConfigError(f"{options.model} holds no text encoder: give the folder of one by --text.")
    guidance = max(_scales(options, system, model), key=lambda scale: abs(scale - 1))
    needed = video_memory(parts, system, size=size, frames=frames, guidance_scale=guidance, dtype=dtype)
    check_memory(needed, device)
    chosen = float(options.fps if options.fps is not None else system.fps if fps is None else fps)
    return _Job(parts, system, prompt, frames, size, given, chosen, device, dtype, seed)


def _scales(options: argparse.Namespace, system: System, model: WanTransformer | WanExperts) -> Scales:
    scale = system.guidance if options.guidance is None else options.guidance
    return checked_scales(model, scale, options.guidance_2, options.negative_prompt)


def _prompt(options: argparse.Namespace) -> Timed:
    if (options.prompt is None) == (options.prompts is None):
        raise ConfigError("--prompt, --prompts: give one of them, a text or a file with a schedule.")
    if options.prompts is None:
        return str(options.prompt)
    values = read_json(Path(options.prompts), ConfigError)
    good = isinstance(values, dict) and all(isinstance(text, str) for text in values.values())
    if not good or not all(frame.isdecimal() for frame in values):
        raise ConfigError(
            f'{options.prompts}: expected prompts by the frame they begin with, {{"0": "cat", "41": "dog"}}.'
        )
    schedule: dict[int, Prompt] = {int(frame): text for frame, text in values.items()}
    timed(schedule)
    return schedule


def _given(options: argparse.Namespace) -> tuple[int, float | None]:
    """Frames that are continued, and their rate."""
    if options.image is not None:
        if options.video is not None:
            raise ConfigError("--image, --video: give one of them.")
        open_video(options.image)
        return 1, None
    if options.video is None:
        if options.video_frames is not None:
            raise ConfigError("--video-frames: got no --video to continue. Add --video PATH.")
        return 0, None
    video = open_video(options.video)
    frames = video.frames if options.video_frames is None else min(options.video_frames, video.frames)
    fitting_frames = frames_of(latents_of(frames)) if frames > 0 else 0
    if fitting_frames != frames:
        raise ConfigError(f"--video: {frames} frames, expected 1 + 4k. Add --video-frames {fitting_frames}.")
    return frames, video.fps


def _check_out(options: argparse.Namespace, job: _Job, *, growing: bool) -> None:
    target = check_target(options.out, job.fps, scale=options.scale, growing=growing)
    check_size(target, job.frames or 1, *job.size, scale=options.scale)


def _loaded(options: argparse.Namespace, job: _Job) -> tuple[TextToVideoPipeline, Timed, torch.Tensor | None]:
    """The pipeline and the embedded prompts. Text encoder and transformer are never in memory together."""
    prompts = TextToVideoPipeline.prompts_of(job.parts, device=job.device, dtype=job.dtype)
    guided = any(scale != 1 for scale in _scales(options, job.system, job.parts.empty_transformer()))
    negative = prompts.encode(options.negative_prompt or "") if guided else None
    embedded: Timed = {frame: prompts.encode(text) for frame, text in timed(job.prompt)}
    del prompts
    pipe = TextToVideoPipeline.from_parts(job.parts, options.system, device=job.device, dtype=job.dtype)
    return pipe, embedded, negative


def _arguments(options: argparse.Namespace, job: _Job, negative: torch.Tensor | None) -> dict[str, Any]:
    clip: Clip | None = None
    if options.video is not None:
        clip = read_clip(options.video, job.given, size=job.size)
    return {
        "size": job.size,
        "negative_prompt": negative,
        "guidance_scale": options.guidance,
        "guidance_scale_2": options.guidance_2,
        "num_inference_steps": options.steps,
        "seed": job.seed,
        "image": options.image,
        "video": clip,
    }
