# SPDX-License-Identifier: Apache-2.0
"""Several real clips continued at once: one stream each, in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ardiff_engine.diffusion.solvers import DDIM, Solver
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.admission import admit
from ardiff_engine.memory import MemoryPolicy, RecomputedWindow
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.pipeline import Pipeline


@torch.no_grad()
def continue_clips(
    pipeline: Pipeline,
    starts: NDArray[np.uint8],
    classes: Sequence[int | None],
    *,
    num_frames: int,
    steps: int,
    lag: int,
    guidance_scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """starts uint8 [N, G, H, W, 3] -> the new frames, uint8 [N, num_frames - G, H, W, 3].

    classes: one per clip, or None where the model is not told. Clip i is what a pipeline makes of it alone
    with noise stream i.
    """
    requests = [
        Request(
            num_frames=num_frames,
            lag=lag,
            condition=class_id,
            guidance_scale=guidance_scale,
            seed=seed,
            noise_stream=index,
            prefix=pipeline.encode(start),
        )
        for index, (start, class_id) in enumerate(zip(starts, classes, strict=True))
    ]
    memory = RecomputedWindow(pipeline.transformer.spec.num_frames)
    solver = DDIM(pipeline.schedule, steps, prediction=pipeline.prediction)
    results = run_together(pipeline.transformer, solver, memory, requests, progress=progress)
    given = starts.shape[1]
    return np.stack([pipeline.decode(latents)[given:].numpy() for latents in results])


def run_together(
    model: VideoModel,
    solver: Solver,
    memory: MemoryPolicy,
    requests: Sequence[Request],
    *,
    progress: bool = False,
) -> list[Tensor]:
    """The latents of every request, [frames, tokens, channels], from an engine with room for all of them."""
    need = (admit(request, model.spec, memory, (solver.num_steps,)).need.most for request in requests)
    engine = Engine(model, solver=solver, memory=memory, max_pages=sum(need))
    streams = [engine.submit(request) for request in requests]
    return [stream.result() for stream in tqdm(streams, "continuations", disable=not progress, leave=False)]
