# SPDX-License-Identifier: Apache-2.0
"""Video that is steered while it is made: a caption, and arrow keys frame by frame.

For folders that `ardiff train` leaves with network = "wan": transformer/, text_encoder/, vae/ and
training_config.json, which says the frames of a block, of a clip, and the noise levels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ardiff_engine import plan
from ardiff_engine.arguments import integer
from ardiff_engine.conditions.captions import CaptionEncoder
from ardiff_engine.data.moving_shapes import ACTIONS, FPS
from ardiff_engine.data.steered_clips import keys_held
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.solvers import Euler, Renoise
from ardiff_engine.engine import Request, Stream
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.files import write_atomic
from ardiff_engine.memory import Window
from ardiff_engine.models.frame_vae import SCALE, FrameVAE, FrameVAECodec
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.places import place_channels
from ardiff_engine.models.wan.video import ACTIONS as INPUT
from ardiff_engine.models.wan.video import PICTURES
from ardiff_engine.parsing import read_json, shown
from ardiff_engine.pipeline.decoding import stream_pictures
from ardiff_engine.pipeline.files import CONFIG_FILE, steered_folder
from ardiff_engine.pipeline.inputs import chosen_seed
from ardiff_engine.pipeline.kept_engine import KeptEngine
from ardiff_engine.pipeline.output import VideoFrame
from ardiff_engine.weights import load_model

Part = TypeVar("Part", bound=nn.Module)

STEPS = 4
EULER, RENOISE = SOLVERS = "euler", "renoise"
"""Of the flow's steps: on a straight line, or to the estimate with fresh noise."""
CAPTIONS_FILE = "captions.json"
MOST_CAPTIONS = 9


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Of the training clips. block: frames that are made together. frames: of a clip, which a block sees at
    most. shift: of the noise levels. fps: frames per second at which they were read.
    guidance: scale at which the model is best, where nothing else is asked.
    solver: one of `SOLVERS`.
    size: height and width of a picture in pixels; None: the autoencoder's square."""

    block: int
    frames: int
    shift: float
    fps: float = FPS
    size: tuple[int, int] | None = None
    guidance: float = 1.0
    solver: str = EULER


class SteeredStream(Iterator[VideoFrame]):
    """Frames in order. `close()` and leaving its last reference end it."""

    def __init__(
        self, frames: Iterator[VideoFrame], stream: Stream, encode: Callable[[str], torch.Tensor]
    ) -> None:
        self._frames, self._stream, self._encode = frames, stream, encode

    def __next__(self) -> VideoFrame:
        return next(self._frames)

    def set_prompt(self, prompt: str) -> int:
        """Another caption from the next pass on; returns the first frame that is made by it. What was before
        is forgotten: the new scene begins with a cut."""
        return int(self._stream.set_condition(self._encode(prompt), effect="reset").first_frame)

    def close(self) -> None:
        self._stream.cancel()
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


class SteeredPipeline:
    """Transformer, text encoder and autoencoder of one folder, and the engine that runs them."""

    def __init__(
        self,
        transformer: WanTransformer,
        text: CaptionEncoder,
        vae: FrameVAE,
        rhythm: Rhythm,
        captions: tuple[str, ...] = (),
    ) -> None:
        """captions: some that it was trained with. ConfigError: parts that do not fit each other."""
        told, read = transformer.config, text.config
        if (told.text_tokens, told.text_dim) != (read.rows, read.width):
            raise ConfigError(
                f"transformer and text encoder do not fit: the first takes {told.text_tokens} rows of "
                f"{told.text_dim}, the second makes {read.rows} of {read.width}."
            )
        if told.actions not in (None, len(ACTIONS) - 1):
            raise ConfigError(
                f"transformer: got {told.actions} actions, expected {len(ACTIONS) - 1} or none."
            )
        self.transformer, self.text, self.vae = transformer.eval(), text.eval(), vae.eval()
        self.codec = FrameVAECodec(vae, transformer.spec)
        self.rhythm, self.captions = rhythm, captions
        self._kept = KeptEngine()

    @classmethod
    def from_pretrained(cls, model: str | Path, *, device: str | torch.device = "cpu") -> SteeredPipeline:
        """A bundled model or a folder. CheckpointError: files of something else, or none."""
        folder = steered_folder(model)
        if folder is None:
            raise CheckpointError(
                f"model: {str(model)!r:.200} holds no steered model; expected a folder that `ardiff train` "
                f'left with network = "wan": transformer/, text_encoder/, vae/, {CONFIG_FILE}.'
            )
        rhythm = read_rhythm(folder / CONFIG_FILE)
        transformer = _loaded(WanTransformer, folder / "transformer", device)
        text = _loaded(CaptionEncoder, folder / "text_encoder", device)
        vae = _loaded(FrameVAE, folder / "vae", device)
        return cls(transformer, text, vae, rhythm, read_captions(folder))

    @property
    def steered(self) -> bool:
        """Whether keys act. A model of own videos has only a caption."""
        return self.transformer.config.actions is not None

    @property
    def fps(self) -> float:
        return self.rhythm.fps

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels, where no other size is asked for."""
        return self.rhythm.size or (self.vae.config.image_size,) * 2

    def stream(
        self,
        prompt: str,
        num_frames: int | None = None,
        *,
        action: Callable[[int], int] | None = None,
        steps: int = STEPS,
        guidance_scale: float | None = None,
        seed: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> SteeredStream:
        """Frames as they become clean, a block at a time.

        prompt: such as "a red circle moves left behind a blue square". num_frames: whole blocks; None never
        ends. action: which key is held in a frame (its number in `moving_shapes.ACTIONS`); it is asked when
        the block of that frame begins; None: none ever is. seed: key of all noise; None draws one. size:
        height and width of the pictures, in whole patches of latents of 8 x 8 pixels; None: that of the
        rhythm.

        guidance_scale: None: that of the rhythm.

        ConfigError, PlanError: arguments, before anything is computed.
        """
        request = self.request(prompt, num_frames, action, steps, guidance_scale, seed, size)
        engine, (stream,) = self._kept.submit(self.transformer, self.transformer, [request])
        frames = stream_pictures(engine, stream, self.codec, None, 0, self.rhythm.block)
        return SteeredStream(frames, stream, self.condition)

    def request(
        self,
        prompt: str,
        num_frames: int | None = None,
        action: Callable[[int], int] | None = None,
        steps: int = STEPS,
        guidance_scale: float | None = None,
        seed: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Request:
        """Of `stream`, for an engine of one's own."""
        guidance = self.rhythm.guidance if guidance_scale is None else guidance_scale
        height, width = size or self.picture
        if height % SCALE or width % SCALE:
            raise ConfigError(f"size: got {height} x {width}, expected multiples of {SCALE}.")
        if action is not None and not self.steered:
            raise ConfigError(
                "action: this model was trained without keys, so none can be held. Leave it out."
            )
        shape, told = (height // SCALE, width // SCALE), self.transformer.config
        inputs: dict[str, Callable[[int], torch.Tensor]] = {}
        if self.steered:
            inputs |= frames_with(action or (lambda frame: 0))
        if beside := told.channels - told.out_channels:
            places = place_channels(beside, *shape)
            inputs[PICTURES] = lambda frame: places
        return Request(
            num_frames=num_frames,
            size=shape,
            plan=plan.blocks(self.rhythm.block),
            condition=self.condition(prompt),
            negative_condition=None if guidance == 1 else self.transformer.null_condition(),
            guidance_scale=guidance,
            seed=chosen_seed(seed),
            frame_inputs=inputs,
            solver=solver_of(self.rhythm, steps),
            memory=Window(self.rhythm.frames),
            max_ahead=self.rhythm.block,
        )

    def condition(self, prompt: str) -> torch.Tensor:
        """The rows of a caption, for the engine."""
        return self.text.encode([prompt])[0]


def _loaded(kind: type[Part], folder: Path, device: str | torch.device) -> Part:
    part = load_model(folder, device=device)
    if not isinstance(part, kind):
        raise CheckpointError(f"{folder}: got {type(part).__name__}, expected {kind.__name__}.")
    return part


def solver_of(rhythm: Rhythm, steps: int) -> Euler | Renoise:
    """Both at the same levels. ConfigError: no step, or too many."""
    schedule = FlowSchedule(rhythm.shift)
    euler = Euler(schedule, integer("steps", steps, low=1, high=schedule.num_timesteps))
    return euler if rhythm.solver == EULER else Renoise(schedule, euler.timesteps[:-1].tolist())


def rhythm_of(values: Any) -> Rhythm:
    """Of the settings of a run. A model of several shapes shows the first of them, and sees as many frames as
    the longest has. KeyError and its like: settings of something else."""
    data = values["data"]
    buckets = [(int(rows), int(columns), int(frames)) for rows, columns, frames in data.get("buckets") or ()]
    return Rhythm(
        int(values["loss"]["block"]),
        max((frames for _, _, frames in buckets), default=int(data["num_frames"])),
        float(values["shift"]),
        float(data.get("fps") or FPS),
        buckets[0][:2] if buckets else None,
        float(values.get("guidance", 1.0)),
        str(values.get("solver", EULER)),
    )


def read_rhythm(path: Path) -> Rhythm:
    """CheckpointError: a file that does not say it."""
    values = read_json(path)
    try:
        rhythm = rhythm_of(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} lacks {error}; expected loss.block, data.num_frames and shift, as `ardiff train` writes."
        ) from error
    told = 0 < rhythm.fps <= 1000 and 0 < rhythm.guidance <= 100 and rhythm.solver in SOLVERS
    if not (1 <= rhythm.block <= rhythm.frames <= 1 << 16 and told):
        raise CheckpointError(
            f"{path}: got blocks of {rhythm.block} frames, clips of {rhythm.frames}, {rhythm.fps} a second, "
            f"guidance {rhythm.guidance}, solver {shown(rhythm.solver)}; expected whole numbers from 1 on, "
            "no block longer than a clip, at most 1000 a second, guidance above 0, at most 100, and one of "
            f"the solvers {', '.join(SOLVERS)}."
        )
    return rhythm


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    """Up to `MOST_CAPTIONS` different ones, in their order, for `read_captions`."""
    told = list(dict.fromkeys(text for text in captions if text))[:MOST_CAPTIONS]
    write_atomic(folder / CAPTIONS_FILE, (json.dumps(told, ensure_ascii=False) + "\n").encode())


def read_captions(folder: Path) -> tuple[str, ...]:
    """None where no file tells them. CheckpointError: a file of something else."""
    path = folder / CAPTIONS_FILE
    if not path.exists():
        return ()
    told = read_json(path)
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise CheckpointError(f"{path}: got {shown(told)}, expected a list of texts. Remove it.")
    return tuple(told[:MOST_CAPTIONS])


def frames_with(action: Callable[[int], int]) -> dict[str, Callable[[int], torch.Tensor]]:
    """Inputs of frames, for the engine: `action` says which key is held in a frame."""
    return {INPUT: lambda frame: keys_held(torch.tensor(_number(action(frame))))}


def _number(action: int) -> int:
    return integer("action", action, low=0, high=len(ACTIONS) - 1)
