# SPDX-License-Identifier: Apache-2.0
"""Weights in the order in which the CPU kernels read them, as ordinary parameters: no second copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def transposed(layers: Sequence[nn.Linear]) -> Tensor:
    """The weights of `layers` side by side, [inputs, outputs of all], a row after the other.

    The parameters become views of the result: they stay what they are, with the same values, gradients,
    shape [outputs, inputs] and another stride. Where `weight` is no parameter of its layer but computed
    (parametrisations, pruning), the result is a copy.
    """
    weights = [layer.weight for layer in layers]
    first, total = weights[0], sum(len(weight) for weight in weights)
    shape = (first.shape[1], total)
    ends, offset = True, first.storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        ends = ends and same and weight.stride() == (1, total) and weight.storage_offset() == offset
        offset += len(weight)
    if ends:
        return first.detach().as_strided(shape, (total, 1))
    joined = first.new_empty(shape, requires_grad=False)
    with torch.no_grad():
        column = 0
        for layer, weight in zip(layers, weights, strict=True):
            own = joined[:, column : column + len(weight)]
            own.copy_(weight.detach().t())
            if layer._parameters.get("weight") is weight:
                weight.data = own.t()
            column += len(weight)
    return joined


def contiguous_again(module: nn.Module) -> None:
    """Gives the parameters of a module memory of their own, a row after the other, where they are views."""
    for parameter in module.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()
