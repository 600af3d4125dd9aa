# SPDX-License-Identifier: Apache-2.0
"""Settings of the objectives that learn from another network: `[distillation]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ardiff_engine.errors import ConfigError
from ardiff_engine.training.earlier_run import earlier_run

MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """teacher: folder of the run it comes from. The student begins with its weights, unless `init` names
        others, and conditions are embedded as the teacher does, for good.
    teacher_block: frames that the teacher sees together, for networks with `loss.block`; 0: as the student.
        As many as a clip has: it sees the whole clip, as the teachers of CausVid and Self-Forcing do.
    guidance_scale: g of the teacher's  out_null + g (out_cond − out_null).
    teacher_steps: levels of the grid that the teacher walks down, evenly spaced, the noisiest first.
    target_decay: of the moving average of the student that gives the targets of consistency distillation.
    fake_updates: steps of the fake score before each one of the student. fake_lr: its learning rate;
        0: optimizer.lr. adversarial_weight: of the term that matches videos of n and of n + 1 steps in
        adversarial self-distillation.
    """

    teacher: str = ""
    teacher_block: int = 0
    guidance_scale: float = 1.0
    teacher_steps: int = 48
    target_decay: float = 0.95
    fake_updates: int = 5
    fake_lr: float = 0.0
    adversarial_weight: float = 0.1

    def __post_init__(self) -> None:
        for name, least, most in (
            ("teacher_block", 0, 10**6),
            ("guidance_scale", -1000, 1000),
            ("teacher_steps", 2, MOST_STEPS),
            ("target_decay", 0, 1),
            ("fake_updates", 0, 1000),
            ("fake_lr", 0, 1000),
            ("adversarial_weight", 0, 1000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"distillation.{name}: got {getattr(self, name)}, expected {least} to {most}."
                )


def teacher_folder(settings: DistillationConfig) -> Path:
    """Of its transformer. ConfigError: no teacher, or nothing there."""
    if not settings.teacher:
        raise ConfigError(
            "distillation.teacher: got nothing, expected the folder of a run of `ardiff train`."
        )
    return earlier_run("distillation.teacher", settings.teacher) / "transformer"
