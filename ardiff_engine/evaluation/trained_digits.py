# SPDX-License-Identifier: Apache-2.0
"""Rules of timesteps, predictions and lags compared by networks trained on moving digits.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ardiff_engine import command_end
from ardiff_engine.arguments import integer
from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError
from ardiff_engine.evaluation.continuations import run_together
from ardiff_engine.evaluation.digit_arms import (
    DIGITS,
    FRAMES,
    Arm,
    Predicted,
    Rule,
    Training,
    autoencoder,
    train_arm,
)
from ardiff_engine.evaluation.digit_measures import MEASURES, Values, measure_continuations
from ardiff_engine.evaluation.digit_results import (
    REBUILT,
    SHOWN,
    Lags,
    Results,
    to_arrays,
    to_lists,
)
from ardiff_engine.evaluation.intervals import paired_difference
from ardiff_engine.evaluation.motion import unsteadiness
from ardiff_engine.evaluation.spoiled import SPOILED
from ardiff_engine.files import write_atomic
from ardiff_engine.memory import Full
from ardiff_engine.models import ARDiffusionTransformer, from_tokens, regroup, to_tokens
from ardiff_engine.parsing import parsing, read_json

Video = NDArray[np.uint8]
GIVEN = 8
TOGETHER = 64
"""Clips that are continued in one batch."""
RESULTS = "trained_digits.json"


@dataclass(frozen=True, slots=True)
class Protocol:
    """Fixed before the runs. clips: held-out ones that are continued. steps: of the solver, and the largest
    lag. Runs of all arms with one seed come before those with the next."""

    arms: tuple[Arm, ...] = (Arm("fopp"), Arm("iid"), Arm("shared"))
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lags: tuple[int, ...] = (0, 1, 5, 20)
    clips: int = 128
    steps: int = 20
    training: Training = field(default_factory=lambda: Training(600))

    def to_json(self) -> Mapping[str, object]:
        return asdict(self)


class HeldOut:
    """clips real ones of 16 frames. truth: the frames that are to be made; given: latents of those before."""

    def __init__(self, clips: int) -> None:
        videos = replace(DIGITS, split="held_out").batch(np.arange(clips), num_frames=FRAMES)[0]
        self.last, self.truth = videos[:, GIVEN - 1], videos[:, GIVEN:]
        self._from_last = videos[:, GIVEN - 1 :]
        pictures = torch.from_numpy(videos).movedim(-1, -3).float() / 255
        with torch.no_grad():
            tokens = torch.cat([to_tokens(autoencoder().encode(part)) for part in pictures.split(TOGETHER)])
        self._tokens = tokens
        self.given = regroup(tokens[:, :GIVEN], 1)

    def measured(self, made: Video) -> Values:
        found = dict(measure_continuations(self.last, made, self.truth))
        found["unsteadiness"] = unsteadiness(made)
        return {name: np.round(found[name], 3) for name in SHOWN}

    def references(self) -> dict[str, Values]:
        """The true frames, their reconstructions, and spoiled ones, as "frozen", the last given frame
        held."""
        rows = {"real clips": self.truth, REBUILT: pixels(regroup(self._tokens[:, GIVEN:], 1))}
        rows |= {name: spoil(self._from_last)[:, 1:] for name, spoil in SPOILED.items()}
        return {name: self.measured(made) for name, made in rows.items()}


@torch.no_grad()
def pixels(latents: torch.Tensor) -> Video:
    """[N, T, 1, 64] -> uint8 [N, T, 32, 32, 3]."""
    tokens = regroup(latents, autoencoder().config.num_latent_tokens)
    decoded = [autoencoder().decode(from_tokens(part)) for part in tokens.split(TOGETHER)]
    return (torch.cat(decoded).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


@torch.no_grad()
def continued(model: ARDiffusionTransformer, arm: Arm, steps: int, lag: int, given: torch.Tensor) -> Video:
    """New frames of every clip; clip n has noise stream n in all arms."""
    requests = [
        Request(num_frames=FRAMES, lag=lag, seed=0, noise_stream=clip, prefix=start)
        for clip, start in enumerate(given)
    ]
    made: list[torch.Tensor] = []
    for first in range(0, len(requests), TOGETHER):
        some = requests[first : first + TOGETHER]
        made += run_together(model, arm.solver(steps), Full(), some)
    return pixels(torch.stack(made)[:, GIVEN:])


def check_measures(references: Mapping[str, Values]) -> None:
    """ConfigError unless each measure sets the spoiled clips that it is to find apart from
    reconstructions."""
    for measure in SHOWN:
        for spoiled in MEASURES[measure].finds:
            apart = paired_difference(references[spoiled][measure], references[REBUILT][measure])
            if not apart.excludes(0):
                raise ConfigError(
                    f"clips: {len(references[REBUILT][measure])} do not show that {spoiled} ones differ from "
                    f"reconstructions by {measure!r}; expected an interval without 0. Give more clips."
                )


def compare(protocol: Protocol, folder: Path) -> Results:
    """Trains what is not there yet below `folder`, going on from checkpoints, and measures what is not
    measured yet."""
    held_out = HeldOut(protocol.clips)
    references = held_out.references()
    check_measures(references)
    runs: dict[str, dict[int, Lags]] = {arm.name: {} for arm in protocol.arms}
    plan = [(seed, arm) for seed in protocol.seeds for arm in protocol.arms]
    for seed, arm in tqdm(plan, desc="runs"):
        runs[arm.name][seed] = _run_of(arm, seed, protocol, held_out, folder)
        Results(protocol.to_json(), references, runs).save(folder / RESULTS)
    return Results(protocol.to_json(), references, runs)


def _run_of(arm: Arm, seed: int, protocol: Protocol, held_out: HeldOut, folder: Path) -> Lags:
    """Kept in a file of its own; a lag that is in it is not measured again.

    ConfigError: one of another protocol.
    """
    path = folder / f"{arm.rule}-{arm.prediction}-{seed}.json"
    settings = {"training": asdict(protocol.training), "steps": protocol.steps, "clips": protocol.clips}
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
        model = train_arm(arm, seed, protocol.training, folder)
        for lag in missing:
            found[lag] = held_out.measured(continued(model, arm, protocol.steps, lag, held_out.given))
        write_atomic(path, (json.dumps({"settings": settings, "lags": to_lists(found)}) + "\n").encode())
    return {lag: found[lag] for lag in protocol.lags}


def main(arguments: list[str] | None = None) -> int:
    usual = Protocol()
    parser = argparse.ArgumentParser(
        prog="python -m ardiff_engine.evaluation.trained_digits", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rules", nargs="+", choices=get_args(Rule), default=["fopp", "iid", "shared"])
    parser.add_argument("--predictions", nargs="+", choices=get_args(Predicted), default=["x0"])
    parser.add_argument("--seeds", type=int, nargs="+", default=usual.seeds, help="(default: %(default)s)")
    parser.add_argument("--lags", type=int, nargs="+", default=usual.lags, help="(default: %(default)s)")
    parser.add_argument("--clips", type=int, default=usual.clips, help="continued (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=usual.training.steps, help="of training (default: %(default)s)"
    )
    parser.add_argument("--solver-steps", type=int, default=usual.steps, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/trained_digits"))
    parser.add_argument("--of", type=Path, help="tables of this file of results; nothing is trained")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)
    return command_end.run(parser, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.of:
        print(Results.load(options.of).markdown())
        return 0
    integer("--clips", options.clips, 2)
    protocol = Protocol(
        tuple(Arm(rule, prediction) for prediction in options.predictions for rule in options.rules),
        tuple(options.seeds),
        tuple(options.lags),
        options.clips,
        options.solver_steps,
        Training(options.steps),
    )
    print(compare(protocol, options.output).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(command_end.console(main))
