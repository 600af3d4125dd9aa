# SPDX-License-Identifier: Apache-2.0
"""Whether a network is what its spec says: checked when an engine is built, at submit, and on its output."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models.protocol import Tables, VideoModel
from ardiff_engine.models.spec import ModelSpec, Size


def check_spec(spec: ModelSpec) -> None:
    """ConfigError for sizes that no network can have, before anything is allocated by them."""
    names = ["num_frames", "channels", "layers", "heads", "kv_heads", "head_dim"]
    if spec.patch is None:
        names.append("tokens_per_frame")
    elif spec.tokens_per_frame is not None or spec.size is None:
        raise ConfigError("ModelSpec: expected tokens_per_frame, or both patch and size.")
    for name in names:
        _check_count(f"ModelSpec.{name}", getattr(spec, name))
    for pair in (spec.patch, spec.size):
        for value in pair or ():
            _check_count("ModelSpec.patch and size", value)
    if spec.channels % prod(spec.patch or ()):
        raise ConfigError(f"ModelSpec: got {spec.channels} channels of a token, of a patch {spec.patch}.")
    spec.grid()
    if spec.heads % spec.kv_heads:
        raise ConfigError(
            f"ModelSpec: got {spec.heads} heads, expected a multiple of kv_heads {spec.kv_heads}."
        )
    if spec.frame_angles is not None and 2 * len(spec.frame_angles) != spec.head_dim:
        raise ConfigError(
            f"ModelSpec.frame_angles: got {len(spec.frame_angles)}, expected {spec.head_dim / 2:g}, one for "
            "each pair of a head."
        )
    if spec.condition_sees_frames and spec.forgets:
        raise ConfigError(
            "ModelSpec: condition_sees_frames with forgets: a condition that sees the frames carries later "
            "ones back to earlier ones; expected forgets=False"
        )
    if spec.grid_angles is not None and (
        [2 * len(own) for own in spec.grid_angles] != [spec.head_dim] * len(spec.grid())
    ):
        raise ConfigError(
            f"ModelSpec.grid_angles: got {[len(own) for own in spec.grid_angles]}, expected "
            f"{spec.head_dim / 2:g} for each of the {len(spec.grid())} axes of a frame."
        )
    inputs = [own.name for own in spec.frame_inputs]
    if len(set(inputs)) < len(inputs):
        raise ConfigError(f"ModelSpec.frame_inputs: got {inputs}, expected names that differ.")
    for own in spec.frame_inputs:
        _check_count(f"channels of ModelSpec.frame_inputs {own.name!r}", own.channels)
    condition = spec.condition
    known = condition.kind in ("joint", "cross", "none")
    if not known or (condition.tokens < 1) != (condition.kind == "none"):
        raise ConfigError(
            f"ModelSpec.condition: got {condition.kind!r} with {condition.tokens} tokens, expected 'joint' "
            "or 'cross' with tokens, or 'none' with 0."
        )
    if condition.parts and (
        condition.kind != "cross" or min(condition.parts) < 1 or sum(condition.parts) != condition.tokens
    ):
        raise ConfigError(
            f"ModelSpec.condition: got parts {condition.parts} of {condition.kind!r} with {condition.tokens} "
            "tokens, expected the rows of each part of a cross condition."
        )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: got {value!r}, expected a whole number >= 1.")


def checked_tables(model: VideoModel, timesteps: torch.Tensor) -> Tables:
    """`model.tables`; ConfigError if a frame's row would lie beyond them."""
    tables = model.tables(timesteps)
    levels = np.arange(len(timesteps))
    shapes = [list(part.shape) for part in tables.parts]
    rows = {part.shape[-3] if part.ndim >= 3 else -1 for part in tables.parts}
    last = int(max(model.frame_rows(levels, firsts).max() for firsts in (levels, np.zeros_like(levels))))
    if len(rows) != 1 or last >= max(rows):
        raise ConfigError(
            f"tables of {type(model).__name__} for {len(timesteps)} timesteps: got {shapes}, expected "
            f"[..., rows, values, width] with more than {last} rows, which frame_rows asks for."
        )
    return tables


def checked_condition(model: VideoModel, given: torch.Tensor | int | str | None) -> torch.Tensor:
    """`model.condition`, or `model.null_condition` for "null"; TensorError if it is not of the shape that the
    spec states."""
    condition = model.null_condition() if isinstance(given, str) else model.condition(given)
    expected = model.spec.condition.shape
    if tuple(condition.shape) != tuple(expected):
        raise TensorError(
            f"condition of {type(model).__name__}: got {list(condition.shape)}, expected {list(expected)}, "
            "as in its spec."
        )
    return condition


def check_layout(model: VideoModel, size: Size | None) -> None:
    """TensorError unless `to_tokens` makes the tokens that the spec states, and `from_tokens` undoes it."""
    spec = model.spec
    shape, tokens = spec.frame_shape(size), (1, spec.tokens(size), spec.channels)
    frame = torch.arange(prod(shape), dtype=torch.float32, device=model.device).reshape(1, *shape)
    made = model.to_tokens(frame)
    if made.shape != tokens or not torch.equal(model.from_tokens(made, size), frame):
        raise TensorError(
            f"to_tokens of {type(model).__name__}: got {list(made.shape)} of a frame {list(shape)}, expected "
            f"{list(tokens)}, as in its spec, and the frame again by from_tokens."
        )


def check_output(model: VideoModel, x: torch.Tensor, out: torch.Tensor) -> None:
    """TensorError unless a network gave one output for each number of its input."""
    if out.shape != x.shape:
        raise TensorError(
            f"output of {type(model).__name__}: got {list(out.shape)}, expected {list(x.shape)}, as x."
        )
