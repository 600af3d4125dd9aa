# SPDX-License-Identifier: Apache-2.0
"""What a run tells of itself: `[log]`. It may change on resume, and changes no bit of what is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LogConfig:
    """tensorboard: the numbers of the log also go to `tensorboard/` in the run's folder.
    gemm_share: stage 2: the part of the machine's rate in one large product of matrices that the products of
        a step reach. Takes the passes of one more step at the beginning.
    samples_every: stage 2: steps between two pictures of generated videos, `samples/step-<n>.png`, with
        averaged weights and held-out clips beside; 0: none. samples: videos of a picture, sample_steps:
        denoising steps of their frames.
    keep_best: stage 2: the averaged weights that had the lowest validation loss so far lie in `best/`, a
        folder of a model as the run's own. Where it is asked for in a resumed run alone, the first ones are
        those of its first validation.
    """

    tensorboard: bool = False
    gemm_share: bool = True
    samples_every: int = 0
    samples: int = 4
    sample_steps: int = 20
    keep_best: bool = False

    def __post_init__(self) -> None:
        for name, least, most in (
            ("samples_every", 0, 10**18),
            ("samples", 1, 64),
            ("sample_steps", 1, 1000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"log.{name}: got {getattr(self, name)}, expected {least} to {most}.")
