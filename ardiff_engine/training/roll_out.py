# SPDX-License-Identifier: Apache-2.0
"""Videos of the network that is trained, made block by block by an engine, with its pages and ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ardiff_engine.diffusion.noise import initial_noise
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.memory import Full, rows_of_pages
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.plan import blocks


@dataclass(frozen=True, slots=True)
class RollOut:
    """frames: the finished clips. noisy: each frame before its last step, at timesteps t [B, F]."""

    frames: Tensor
    noisy: Tensor
    t: Tensor


def roll_out(
    video: VideoModel,
    asked: Sequence[Mapping[str, Any]],
    solvers: Sequence[Renoise],
    like: Tensor,
    block: int,
    seed: int,
    samples: Sequence[int],
) -> RollOut:
    """One video for each solver, frames like [B, F, ...]; noise is counted by seed and sample.

    The engine is built anew, since the weights have changed. Frames and noise are float32.
    """
    spec, frames = video.spec, like.shape[1]
    rows = rows_of_pages(spec)
    size = (like.shape[3], like.shape[4]) if spec.patch is not None else None
    own = frames * -(-spec.tokens(size) // rows) + -(-spec.context_tokens // rows)
    pages = len(solvers) * (own + sum(spec.condition.pages(rows)) + 1)
    training = isinstance(video, nn.Module) and video.training
    engine = Engine(video, solver=solvers[0], memory=Full(), plan=blocks(block), max_pages=pages)
    start = [initial_noise(seed, sample % 2**32, range(frames), like.shape[2:]) for sample in samples]
    noisy = torch.stack(start)
    streams: list[Stream] = []
    for row, solver in enumerate(solvers):

        def look(stream: Stream, row: int = row, last: int = solver.num_steps - 1) -> None:
            for frame, done in stream.levels.items():
                if done == last and last:
                    noisy[row, frame] = stream.latents[frame].cpu()

        request = Request(
            num_frames=frames,
            solver=solver,
            seed=seed,
            noise_stream=samples[row] % 2**32,
            latents=start[row],
            on_step=look,
            **asked[row],
        )
        streams.append(engine.submit(request))
    made = torch.stack([stream.result() for stream in streams])
    if isinstance(video, nn.Module):
        video.train(training)
    t = torch.stack([solver.timesteps[solver.num_steps - 1].expand(frames) for solver in solvers])
    return RollOut(made.to(like), noisy.to(like), t.to(like.device))
