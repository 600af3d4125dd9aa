# SPDX-License-Identifier: Apache-2.0
"""Several real clips continued at once: one stream each, in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.admission import admit
from ardiff_engine.memory import RecomputedWindow
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
    spec = pipeline.transformer.spec
    memory = RecomputedWindow(spec.num_frames)
    pages = sum(admit(request, spec, memory, (steps,)).need.most for request in requests)
    solver = DDIM(pipeline.schedule, steps, prediction=pipeline.prediction)
    engine = Engine(pipeline.transformer, solver=solver, memory=memory, max_pages=pages)
    streams = [engine.submit(request) for request in requests]
    results = [
        stream.result() for stream in tqdm(streams, "continuations", disable=not progress, leave=False)
    ]
    given = starts.shape[1]
    return np.stack([pipeline.decode(latents)[given:].numpy() for latents in results])
