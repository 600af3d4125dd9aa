# SPDX-License-Identifier: Apache-2.0
"""Teacher forcing is F autoregressive steps in one pass: frame f equals the last frame of the clip
(history 0 .. f - 1, x_f), gradients included.
"""

from __future__ import annotations

import pytest
import torch
from dense_oracle import randomise

from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM, Euler
from ardiff_engine.errors import TensorError
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.training.config import DiffusionLossConfig
from ardiff_engine.training.objective import Clips, Denoising
from ardiff_engine.training.taught import is_teacher_forced
from ardiff_engine.training.timesteps import KNOWN_LEVELS, history_levels, independent_levels


def model_and_clip(context_tokens: int, merge: str = "separate_norm", mask: str = "temporal_causal"):
    torch.manual_seed(0)
    model = ARDiffusionTransformer(
        ARDiffusionConfig(
            num_frames=6,
            tokens_per_frame=3,
            width=32,
            depth=3,
            heads=4,
            context_tokens=context_tokens,
            context_dim=12,
            merge=merge,
            mask=mask,
        )
    )
    randomise(model)
    x, clean = torch.randn(2, 5, 3, 4), torch.randn(2, 4, 3, 4)
    t, clean_t = torch.randint(0, 1000, (2, 5)), torch.randint(0, 20, (2, 4))
    return model.double(), x.double(), t, torch.randn(2, context_tokens, 12).double(), clean.double(), clean_t


@pytest.mark.parametrize("context_tokens", [2, 3, 7])
@pytest.mark.parametrize("merge", ["separate_norm", "share_norm"])
def test_every_frame_is_an_autoregressive_step(context_tokens, merge):
    model, x, t, context, clean, clean_t = model_and_clip(context_tokens, merge)
    clean.requires_grad_(True)
    out = model.forward_clip(x, t, context, clean, clean_t)
    assert out.shape == x.shape
    weight = torch.randn_like(out)
    gradient = torch.autograd.grad((out * weight).sum(), [*model.blocks.parameters(), clean])
    total = torch.zeros((), dtype=torch.float64)
    for f in range(5):
        clip = torch.cat([clean[:, :f], x[:, f : f + 1]], dim=1)
        times = torch.cat([clean_t[:, :f], t[:, f : f + 1]], dim=1)
        step = model.forward_clip(clip, times, context)[:, f]
        torch.testing.assert_close(out[:, f], step, rtol=1e-10, atol=1e-10)
        total = total + (step * weight[:, f]).sum()
    for got, expected in zip(
        gradient, torch.autograd.grad(total, [*model.blocks.parameters(), clean]), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_absolute_positions_too():
    model, x, t, context, clean, clean_t = model_and_clip(3)
    absolute = ARDiffusionTransformer(
        ARDiffusionConfig(**(model.config.to_dict() | {"positions": "absolute"}))
    ).double()
    randomise(absolute)
    out = absolute.forward_clip(x, t, context, clean, clean_t)
    last = torch.cat([clean, x[:, 4:]], dim=1), torch.cat([clean_t, t[:, 4:]], dim=1)
    torch.testing.assert_close(out[:, 4], absolute.forward_clip(*last, context)[:, 4], rtol=1e-10, atol=1e-10)


def test_models_that_cannot_and_wrong_shapes_are_typed_errors():
    for options in ({"mask": "video_temporal_causal"}, {"merge": "reproduce"}):
        model, x, t, context, clean, clean_t = model_and_clip(3, **options)
        with pytest.raises(TensorError, match="teacher forcing"):
            model.forward_clip(x, t, context, clean, clean_t)
    model, x, t, context, clean, clean_t = model_and_clip(3)
    for bad in ((clean[:, :3], clean_t), (clean, clean_t[:, :3]), (clean, None)):
        with pytest.raises(TensorError, match="history"):
            model.forward_clip(x, t, context, *bad)
    with pytest.raises(TensorError, match="frame"):
        model.forward_clip(x[:, :1], t[:, :1], context, clean[:, :0], clean_t[:, :0])


def test_levels_of_history_are_those_of_finished_frames():
    loss = DiffusionLossConfig()
    t, history = (draw(range(1000, 1400), 16, 1000, loss, 3) for draw in (independent_levels, history_levels))
    assert t.shape == history.shape == (400, 16)
    assert int(history.min()) >= 0 and int(history.max()) < KNOWN_LEVELS
    assert (history == history[:, :1]).all() and history[:, 0].unique().numel() == KNOWN_LEVELS
    assert abs(float(t.double().mean()) - 499.5) < 15
    assert torch.equal(independent_levels([1010, 1013], 16, 1000, loss, 3), t[[10, 13]])


def test_history_may_be_noised_or_dropped():
    loss = DiffusionLossConfig(history_levels=(300, 310), history_dropped=0.25)
    history = history_levels(range(400), 16, 1000, loss, 3)
    dropped = history == 999
    assert abs(float(dropped.double().mean()) - 0.25) < 0.03
    kept = torch.where(dropped, history.masked_fill(dropped, 0).amax(1, keepdim=True), history)
    assert ((history[~dropped] >= 300) & (history[~dropped] <= 310)).all() and (kept == kept[:, :1]).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_share_of_teacher_forced_clips(share):
    taught = [is_teacher_forced(sample, share) for sample in range(2000)]
    for first in (0, 7, 1001):
        assert abs(sum(taught[first : first + 40]) - 40 * share) <= 1


@pytest.mark.parametrize(
    "schedule, prediction, sampler",
    [
        (NoiseSchedule.sqrt_linear(), "x0", DDIM(NoiseSchedule.sqrt_linear(), 50)),
        (FlowSchedule(3.0), "flow", Euler(FlowSchedule(3.0), 4)),
    ],
    ids=["ddim", "flow"],
)
def test_a_clean_history_is_told_as_samplers_tell_finished_frames(
    schedule: NoiseSchedule | FlowSchedule, prediction: str, sampler: DDIM | Euler
) -> None:
    """A network that saw other timesteps alone there does not know what its first new frame sees."""
    loss = DiffusionLossConfig(prediction=prediction, history_levels=(0, 0))  # type: ignore[arg-type]
    clips = Clips([1, 2], torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(0)), None, 0, None)
    task = Denoising(lambda *_: clips.frames, schedule, loss)
    frames, t = task.history(clips)
    assert (t == sampler.timesteps[-1]).all() and torch.equal(t, task.told_clean(t))
    assert torch.allclose(frames, clips.frames, atol=0.05)
