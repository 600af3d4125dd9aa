# SPDX-License-Identifier: Apache-2.0
"""What may be given to `ARDiffusionTransformer.forward_clip`: shapes that fit, or a typed error that names
the one that does not."""

from __future__ import annotations

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig


def check_clip(config: ARDiffusionConfig, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> None:
    """TensorError unless these can be what `forward_clip` of a model with this config is given."""
    cell = (config.tokens_per_frame, config.channels)
    if x.ndim != 4 or tuple(x.shape[2:]) != cell or 0 in x.shape:
        raise TensorError(
            explain(
                "x",
                got=tuple(x.shape),
                expected=f"[B, F, {cell[0]}, {cell[1]}]",
                fix="See models.to_tokens.",
            )
        )
    if tuple(t.shape) != tuple(x.shape[:2]):
        raise TensorError(
            explain("t", got=tuple(t.shape), expected=tuple(x.shape[:2]), fix="Give one timestep per frame.")
        )
    if config.positions == "absolute" and x.shape[1] > config.num_frames:
        raise TensorError(
            explain(
                "frames",
                got=x.shape[1],
                expected=f"at most {config.num_frames}",
                fix="Absolute positions end there; use a window.",
            )
        )
    expected = (x.shape[0], config.context_tokens, config.context_dim)
    if tuple(context.shape) != expected:
        raise TensorError(
            explain("context", got=tuple(context.shape), expected=expected, fix="Use model.context(...).")
        )


def check_history(
    config: ARDiffusionConfig,
    x: torch.Tensor,
    history: torch.Tensor,
    history_t: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both, checked. A mode in which tokens depend on frames that come later has no teacher forcing."""
    if not config.takes_history:
        raise TensorError(
            explain(
                "history",
                got=f"a model with mask {config.mask!r} and merge {config.merge!r}",
                expected="mask 'temporal_causal' and merge 'separate_norm' or 'share_norm'",
                fix="Train this model without teacher forcing.",
            )
        )
    expected = (x.shape[0], x.shape[1] - 1, *x.shape[2:])
    if tuple(history.shape) != expected or expected[1] == 0:
        raise TensorError(
            explain(
                "history",
                got=tuple(history.shape),
                expected=f"{expected}, of at least one frame",
                fix="Give the frames before the last of x.",
            )
        )
    if history_t is None or tuple(history_t.shape) != expected[:2]:
        raise TensorError(
            explain(
                "history_t",
                got=None if history_t is None else tuple(history_t.shape),
                expected=expected[:2],
                fix="Give one timestep per frame of history.",
            )
        )
    return history, history_t
