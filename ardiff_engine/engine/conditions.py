# SPDX-License-Identifier: Apache-2.0
"""What a user may give as a condition, as the tensor that the model takes."""

from __future__ import annotations

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer


@torch.no_grad()
def condition_rows(model: ARDiffusionTransformer, condition: torch.Tensor | int | None) -> torch.Tensor:
    """[context_tokens, context_dim] on the model's device, of a class id, given rows, or None (its own)."""
    if condition is None:
        return model.context()[0]
    if isinstance(condition, int):
        return model.context(torch.tensor([condition]))[0]
    expected = (model.config.context_tokens, model.config.context_dim)
    if tuple(condition.shape) != expected or not bool(torch.isfinite(condition).all()):
        raise TensorError(
            explain(
                "condition",
                got=tuple(condition.shape),
                expected=f"finite {expected}",
                fix="Give [context_tokens, context_dim], a class id or None.",
            )
        )
    weight = model.x_embedder.weight
    return condition.detach().to(weight.device, weight.dtype)
