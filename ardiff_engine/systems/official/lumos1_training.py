# SPDX-License-Identifier: Apache-2.0
"""What Lumos-1 draws and builds in training: which tokens are masked, who sees whom, where tokens stand and
how their keys are turned."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import torch

from ardiff_engine.systems.official.lumos1 import FIRST_VISUAL, TIME

SPACE = 8
"""Places of a token along rows and columns."""

PREFIX, MARKS, END, SUFFIX = FIRST_VISUAL[1], 3, 1, 2
"""Tokens before the first frame, before the tokens of each, after these, and after the last frame."""

AXES = (0, 0, 0, 0, *(1, 1, 2, 2) * 3)
"""Along which axis (time, rows, columns) sixteen neighbouring channels of a key are turned."""

KINDS = ("tube", "tubeDecay", "DiffForcing", "random")
BATCH = 2


def masked(kind: str, frames: int, tokens: int, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [BATCH, frames, tokens], and the shares that were drawn: cos(π·u/2), at least `least`.

    tube: the same tokens in all frames. tubeDecay: more and more of these, all in the last frame.
    DiffForcing: a share for each frame; those of the last clip are returned. random: of all tokens of the
    clip. Those are masked whose number among uniform ones is low.
    """

    def drawn(*shape: int) -> torch.Tensor:
        return torch.cos(torch.rand(shape) * torch.pi * 0.5).clamp(min=least)

    def ranks(*shape: int) -> torch.Tensor:
        return torch.rand(shape).argsort(-1)

    shares = drawn(BATCH)
    if kind == "random":
        lowest = ranks(BATCH, frames * tokens) < (frames * tokens * shares).round()[:, None]
        return lowest.view(BATCH, frames, tokens), shares
    if kind == "DiffForcing":
        clips = []
        for _ in range(BATCH):
            shares = drawn(frames)
            clips.append(ranks(frames, tokens) < (tokens * shares).round()[:, None])
        return torch.stack(clips), shares
    count = (tokens * shares).round()[:, None].expand(-1, frames)
    if kind == "tubeDecay":
        count = count + ((tokens - count) * torch.arange(frames) / max(frames - 1, 1)).ceil()
    return ranks(BATCH, tokens)[:, None] < count[:, :, None], shares


def trained(rows: int, columns: int, frames: int, seed: int, head_dim: int = 64) -> SimpleNamespace:
    """Arrays of one sequence of N tokens, named as those on record: `{kind}_{draw}_masked_sequence` and
    `_loss_tokens` bool [BATCH, N], `_probability`; `attention_mask` packed [N, N]; `position_*` int64 [N];
    `mm_rope_cos`, `_sin` float64 [20, head_dim] of 20 tokens. The third draw masks at least 0.7."""
    size = rows * (columns + 1)
    group = MARKS + size + END
    length = PREFIX + frames * group + SUFFIX
    at = np.arange(length)
    frame, inside = np.divmod(at - PREFIX, group)
    in_frame = (frame >= 0) & (frame < frames)
    visual = in_frame & (inside >= MARKS) & (inside < MARKS + size)
    row, column = np.divmod(inside - MARKS, columns + 1)
    stops = np.where(in_frame, PREFIX + (frame + 1) * group, at + 1)
    first = FIRST_VISUAL[0]
    places = [
        np.where(visual, first + step * along, at)
        for along, step in ((frame, TIME), (row, SPACE), (column, SPACE))
    ]
    half = head_dim // 2
    axis = np.resize(AXES, half)
    rates = 10000.0 ** (-np.arange(half) / half)
    shown = np.linspace(0, length - 1, 20).astype(np.int64)
    angles = np.tile(np.stack(places)[axis][:, shown].T * rates, 2)
    made: dict[str, npt.NDArray[np.generic]] = {
        "attention_mask": np.packbits(at < stops[:, None], axis=1),
        "position_text": at,
        "position_is_visual": visual.astype(np.int64),
        "mm_rope_axis_of_dim_0t_1h_2w": np.tile(axis, 2),
        "mm_rope_inv_freq": rates,
        "mm_rope_token": shown,
        "mm_rope_cos": np.cos(angles),
        "mm_rope_sin": np.sin(angles),
    } | dict(zip(("position_t", "position_h", "position_w"), places, strict=True))
    with torch.random.fork_rng(devices=[]):
        for draw, least in enumerate((0.0, 0.0, 0.7)):
            for kind in KINDS:
                torch.manual_seed(seed + 10 * draw + 1)
                of_frames, shares = masked(kind, frames, size, least)
                sequence = np.zeros((BATCH, length), np.bool_)
                sequence[:, visual] = of_frames.flatten(1).numpy()
                made[f"{kind}_{draw}_masked_sequence"] = sequence
                made[f"{kind}_{draw}_loss_tokens"] = sequence | ~visual
                made[f"{kind}_{draw}_probability"] = shares.numpy()
    return SimpleNamespace(**made)
