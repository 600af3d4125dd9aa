# SPDX-License-Identifier: Apache-2.0
"""How well a steered model of moving shapes does what it is told.

    python -m ardiff_engine.evaluation.shapes --model FOLDER

Beside it stand real clips, frozen and shuffled ones, and real clips as the autoencoder gives them back: what
a measure says of those is what it is worth.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ardiff_engine import command_end
from ardiff_engine.arguments import integer
from ardiff_engine.data.moving_shapes import MovingShapes, Scene
from ardiff_engine.evaluation.shape_detector import tracks
from ardiff_engine.evaluation.shape_judge import (
    appears,
    constant,
    follows,
    moves_as_told,
    obeys,
    pressed_at,
    shows_scene,
)
from ardiff_engine.files import make_folder, write_atomic
from ardiff_engine.media import contact_sheet
from ardiff_engine.pipeline.steered import SteeredPipeline

Video = NDArray[np.uint8]
BARS = {"prompt": 0.9, "action": 0.9, "constant": 0.8, "switch": 0.8}
PROMPT_AT_TWO = 0.8
"""In place of that of four steps."""
MEASURES = ("shapes", "direction", *BARS)
EARLY_BLOCKS, SWITCH_BLOCK, SWITCH_WITHIN = 4, 4, 3
"""Blocks that a prompt is judged by; before a key is pressed or the prompt changes; until the new shape."""
MOST_BLOCKS_HIDDEN = 8
"""A key waits so long for its shape to come out from behind the other one."""
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Answers:
    """yes or no of each clip, by measure."""

    name: str
    found: Mapping[str, Sequence[bool]]

    def share(self, measure: str) -> tuple[float, float, float]:
        """Of yes, and Wilson's interval of 95 %."""
        answers = self.found[measure]
        n, p, z = len(answers), float(np.mean(answers)), 1.96
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
        return p, max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Source:
    """Where videos come from. make(index, frames, keys, prompts): keys by the frame from which they are held,
    prompts: index of another scene by the frame at which it replaces the first."""

    name: str
    make: Callable[[int, int, Mapping[int, int], Mapping[int, int]], Video]


def evaluate(source: Source, scenes: Sequence[Scene], block: int, frames: int) -> Answers:
    """All measures of one source. frames: of the long videos."""
    found: dict[str, list[bool]] = {measure: [] for measure in MEASURES}
    switch = SWITCH_BLOCK * block
    # The key is pressed as soon as the first shape is whole: what is hidden cannot be seen to obey.
    moments = range(switch, min(frames, switch + MOST_BLOCKS_HIDDEN * block) + 1, block)
    for index, scene in enumerate(tqdm(scenes, desc=source.name, unit="clip", mininterval=1.0)):
        early = tracks(source.make(index, EARLY_BLOCKS * block, {}, {}))
        found["shapes"].append(shows_scene(early, scene))
        found["direction"].append(moves_as_told(early, scene))
        found["prompt"].append(follows(early, scene))
        long = tracks(source.make(index, frames, {}, {}))
        found["constant"].append(constant(long, scene))
        moment, key = pressed_at(long, scene, index, moments)
        steered = tracks(source.make(index, moment + block, {moment: key}, {}))
        found["action"].append(obeys(steered, scene.colors[0], key, moment, block))
        other = next(n % len(scenes) for n in range(index + 1, index + 99) if _differs(scenes, index, n))
        last = switch + SWITCH_WITHIN * block
        changed = tracks(source.make(index, last, {}, {switch: other}))
        found["switch"].append(appears(changed, scenes[other], switch, last))
    return Answers(source.name, found)


def generated(pipe: SteeredPipeline, scenes: Sequence[Scene], steps: int, guidance: float | None) -> Source:
    """Videos of a model: clip n has seed n."""
    block = pipe.rhythm.block

    def make(index: int, frames: int, keys: Mapping[int, int], prompts: Mapping[int, int]) -> Video:
        def held(frame: int) -> int:
            return next((key for first, key in keys.items() if frame >= first), 0)

        stream = pipe.stream(
            scenes[index].caption,
            -(-frames // block) * block,
            action=held,
            steps=steps,
            guidance_scale=guidance,
            seed=index,
        )
        images = []
        for frame in stream:
            images.append(frame.image.numpy())
            if frame.index + 1 in prompts:
                stream.set_prompt(scenes[prompts[frame.index + 1]].caption)
        return np.stack(images[:frames])

    return Source(f"{steps} steps", make)


def real(shapes: MovingShapes) -> Source:
    """Clips of the world itself."""

    def make(index: int, frames: int, keys: Mapping[int, int], prompts: Mapping[int, int]) -> Video:
        actions = [next((key for first, key in keys.items() if f >= first), 0) for f in range(frames)]
        video = shapes.clip(index, num_frames=frames, actions=actions).video
        for first, other in prompts.items():
            video[first:] = shapes.clip(
                other, num_frames=frames - first, actions=[0] * (frames - first)
            ).video
        return video

    return Source("real", make)


def changed(source: Source, name: str, change: Callable[[Video], Video]) -> Source:
    return Source(name, lambda *what: change(source.make(*what)))


def frozen(video: Video) -> Video:
    return np.repeat(video[:1], len(video), axis=0)


def shuffled(video: Video) -> Video:
    return video[np.random.default_rng(0).permutation(len(video))]


def report(rows: Sequence[Answers]) -> str:
    """A table of shares with their intervals, and the bars."""
    lines = [f"| | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    bars = [f"{100 * bar:.0f} %" for bar in BARS.values()]
    bars[0] += f" (at 2: {100 * PROMPT_AT_TWO:.0f} %)"
    lines.append(f"| bar | | | {' | '.join(bars)} |")
    for row in rows:
        cells = []
        for measure in MEASURES:
            share, low, high = row.share(measure)
            cells.append(f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]")
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differs(scenes: Sequence[Scene], index: int, other: int) -> bool:
    other %= len(scenes)
    return scenes[other].colors[0] not in scenes[index].colors


def _sources(options: argparse.Namespace, pipe: SteeredPipeline, shapes: MovingShapes) -> Iterator[Source]:
    scenes = [clip.scene for clip in shapes.batch(range(options.clips), num_frames=1)]
    true = real(shapes)
    if options.references:
        yield true
        yield changed(true, "frozen", frozen)
        yield changed(true, "shuffled", shuffled)
        yield changed(
            true,
            "reconstructed",
            lambda video: pipe.codec.decoder().push(pipe.codec.encode(torch.from_numpy(video))).numpy(),
        )
    for steps in options.steps:
        yield generated(pipe, scenes, steps, options.guidance)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.shapes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="moving-shapes", help="bundled model or folder (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/evaluation-shapes"), help="(%(default)s)"
    )
    parser.add_argument("--clips", type=int, default=40, help="prompts, held out (%(default)s)")
    parser.add_argument("--frames", type=int, default=200, help="of the long videos (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2], help="per block (%(default)s)")
    parser.add_argument("--guidance", type=float, help="guidance scale (the model's own)")
    parser.add_argument(
        "--no-references", dest="references", action="store_false", help="judge the model alone"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    integer("--clips", options.clips, low=20)
    pipe = SteeredPipeline.from_pretrained(options.model)
    frames = integer("--frames", options.frames, low=EARLY_BLOCKS * pipe.rhythm.block)
    shapes = replace(MovingShapes(split="held_out"), steered=0.0)
    scenes = [clip.scene for clip in shapes.batch(range(options.clips), num_frames=1)]
    folder = make_folder(options.output)
    rows: list[Answers] = []
    for source in _sources(options, pipe, shapes):
        rows.append(evaluate(source, scenes, pipe.rhythm.block, frames))
        shown = [source.make(index, 24, {}, {})[::3] for index in range(SHOWN)]
        captions = [scene.caption for scene in scenes[:SHOWN]]
        contact_sheet(shown, captions, folder / f"{source.name.replace(' ', '-')}.png")
        _save(rows, folder)
    print(report(rows))
    return 0


def _save(rows: Sequence[Answers], folder: Path) -> None:
    """evaluation.json, with the answers of every clip, and evaluation.md, of what has been judged so far."""
    values = {row.name: {name: list(map(bool, row.found[name])) for name in MEASURES} for row in rows}
    write_atomic(folder / "evaluation.json", json.dumps({"bars": BARS, "answers": values}).encode())
    write_atomic(folder / "evaluation.md", (report(rows) + "\n").encode())


if __name__ == "__main__":
    sys.exit(command_end.console(main))
