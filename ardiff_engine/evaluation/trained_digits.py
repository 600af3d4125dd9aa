# SPDX-License-Identifier: Apache-2.0
"""Rules of timesteps, predictions and lags compared by networks trained on moving digits or shapes.

    python -m ardiff_engine.evaluation.trained_digits            # goes on where it was stopped

Small networks are trained, alike but for the rule or what they predict (`digit_arms`), each with several
seeds. All of them continue the same held-out clips from the same noise at every lag. Measures are tried on
clips that no network made first. An arm counts at a lag if it is nearer to the truth than the last given
frame held, by an interval over seeds and clips; arms are compared where both count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from ardiff_engine import command_end
from ardiff_engine.arguments import integer
from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.continuations import run_together
from ardiff_engine.evaluation.digit_arms import (
    Arm,
    Predicted,
    Rule,
    Training,
    run_name,
    train_arm,
)
from ardiff_engine.evaluation.digit_measures import Measure, Values
from ardiff_engine.evaluation.digit_results import REBUILT, WINDOW, Lags, Results, to_arrays, to_lists
from ardiff_engine.evaluation.digit_world import DigitWorld
from ardiff_engine.evaluation.intervals import paired_difference
from ardiff_engine.evaluation.shape_world import ShapeWorld
from ardiff_engine.evaluation.worlds import FRAMES, GIVEN, TOGETHER, HeldOut, Video, World
from ardiff_engine.files import write_atomic
from ardiff_engine.memory import Full, Window
from ardiff_engine.models import ARDiffusionTransformer
from ardiff_engine.parsing import parsing, read_json

RESULTS = "trained_digits"
WORLDS: Mapping[str, World] = {world.name: world for world in (DigitWorld(), ShapeWorld())}
SHORT, REFINED = Training(600), Training(400, batch=32, refined=True)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Fixed before the runs. clips: held-out ones that are continued, up to `frames`. steps: of the solver,
    and the largest lag. windows: last frames that a frame sees, itself included; none: all. world: of
    `WORLDS`. Runs of all arms with one seed come before those with the next."""

    arms: tuple[Arm, ...] = (Arm("fopp"), Arm("iid"), Arm("shared"))
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lags: tuple[int, ...] = (0, 1, 5, 20)
    clips: int = 128
    steps: int = 20
    training: Training = SHORT
    windows: tuple[int, ...] = ()
    frames: int = FRAMES
    world: str = "digits"

    @property
    def results(self) -> str:
        """Name of the file: what is compared in one folder does not write over each other."""
        kind = "_predictions" * self.training.refined + "_windows" * bool(self.windows)
        return RESULTS + (kind if self.world == "digits" else f"_{self.world}") + ".json"

    def to_json(self) -> Mapping[str, object]:
        return asdict(self)


PROTOCOLS = {
    "rules": Protocol(),
    "predictions": Protocol(
        tuple(Arm("fopp", prediction) for prediction in get_args(Predicted)), lags=(0, 20), training=REFINED
    ),
    "windows": Protocol((Arm("fopp"),), lags=(0, 20), clips=64, windows=(4, 8, 16), frames=32),
    "shapes": Protocol(lags=(0, 5, 20), training=replace(REFINED, steps=320, width=128), world="shapes"),
}
"""Those of docs/evidence.md; "windows" asks networks of "rules"."""


@torch.no_grad()
def continued(
    model: ARDiffusionTransformer,
    arm: Arm,
    protocol: Protocol,
    lag: int,
    given: torch.Tensor,
    window: int | None = None,
) -> Video:
    """New frames of every clip; clip n has noise stream n in all arms."""
    scale = protocol.training.scale
    requests = [
        Request(num_frames=protocol.frames, lag=lag, seed=0, noise_stream=clip, prefix=scale * start)
        for clip, start in enumerate(given)
    ]
    memory = Full() if window is None else Window(window)
    made: list[torch.Tensor] = []
    for first in range(0, len(requests), TOGETHER):
        some = requests[first : first + TOGETHER]
        made += run_together(model, arm.solver(protocol.steps), memory, some)
    return WORLDS[protocol.world].pixels(torch.stack(made)[:, GIVEN:] / scale)


def check_measures(references: Mapping[str, Values], measures: Mapping[str, Measure]) -> None:
    """ConfigError unless each measure sets the spoiled clips that it is to find apart from
    reconstructions."""
    for measure, meant in measures.items():
        for spoiled in meant.finds:
            apart = paired_difference(references[spoiled][measure], references[REBUILT][measure])
            if not apart.excludes(0):
                raise ConfigError(
                    f"clips: {len(references[REBUILT][measure])} do not show that {spoiled} ones differ from "
                    f"reconstructions by {measure!r}; expected an interval without 0. Give more clips."
                )


def compare(protocol: Protocol, folder: Path) -> Results:
    """Trains what is not there yet below `folder`, going on from checkpoints, and measures what is not
    measured yet."""
    held_out = WORLDS[protocol.world].held_out(protocol.clips, protocol.frames)
    references = held_out.references()
    check_measures(references, held_out.measures)
    runs: dict[str, dict[int, Lags]] = {}
    windows = protocol.windows or (None,)
    plan = [(seed, arm, window) for seed in protocol.seeds for arm in protocol.arms for window in windows]
    for seed, arm, window in tqdm(plan, desc="runs"):
        name = arm.name if window is None else f"{arm.name}{WINDOW}{window}"
        runs.setdefault(name, {})[seed] = _run_of(arm, seed, protocol, held_out, folder, window)
        Results(protocol.to_json(), references, runs).save(folder / protocol.results)
    return Results(protocol.to_json(), references, runs)


def _run_of(
    arm: Arm, seed: int, protocol: Protocol, held_out: HeldOut, folder: Path, window: int | None
) -> Lags:
    """Kept in a file of its own; a lag that is in it is not measured again.

    ConfigError: one of another protocol.
    """
    seen = "" if window is None else f"-window{window}"
    path = folder / f"{run_name(arm, seed, protocol.training, protocol.world)}{seen}.json"
    settings = {
        "training": asdict(protocol.training),
        "steps": protocol.steps,
        "clips": protocol.clips,
        "frames": protocol.frames,
    }
    found: dict[int, Values] = {}
    if path.is_file():
        values = read_json(path)
        with parsing(path, fix="Remove it, and it is made again."):
            if values["settings"] != settings:
                raise ConfigError(
                    f"{path}: got {values['settings']}, expected {settings}. Choose another --output."
                )
            found = {int(lag): to_arrays(own) for lag, own in values["lags"].items()}
    missing = [lag for lag in protocol.lags if lag not in found]
    if missing:
        model = train_arm(arm, seed, protocol.training, folder, WORLDS[protocol.world])
        for lag in missing:
            made = continued(model, arm, protocol, lag, held_out.given, window)
            found[lag] = held_out.measured(made)
        write_atomic(path, (json.dumps({"settings": settings, "lags": to_lists(found)}) + "\n").encode())
    return {lag: found[lag] for lag in protocol.lags}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.trained_digits", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="rules", help="what is compared; the rest changes it"
    )
    parser.add_argument("--rules", nargs="+", choices=get_args(Rule))
    parser.add_argument("--predictions", nargs="+", choices=get_args(Predicted))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--lags", type=int, nargs="+")
    parser.add_argument("--clips", type=int, help="that are continued")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--solver-steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("outputs/trained_digits"))
    parser.add_argument("--of", type=Path, help="tables of this file of results; nothing is trained")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.of:
        print(Results.load(options.of).markdown())
        return 0
    print(compare(_protocol(options), options.output).markdown())
    return 0


def _protocol(options: argparse.Namespace) -> Protocol:
    """The named one, changed by what else was said."""
    usual = PROTOCOLS[options.protocol]
    rules = options.rules or dict.fromkeys(arm.rule for arm in usual.arms)
    predictions = options.predictions or dict.fromkeys(arm.prediction for arm in usual.arms)
    steps, training = usual.steps, usual.training
    if options.solver_steps is not None:
        steps = integer("--solver-steps", options.solver_steps, 1)
    if options.steps is not None:
        training = replace(training, steps=options.steps)
    return replace(
        usual,
        arms=tuple(Arm(rule, prediction) for prediction in predictions for rule in rules),
        seeds=tuple(options.seeds or usual.seeds),
        lags=tuple(options.lags or usual.lags),
        clips=usual.clips if options.clips is None else integer("--clips", options.clips, 2),
        steps=steps,
        training=training,
    )


if __name__ == "__main__":
    sys.exit(command_end.console(main))
