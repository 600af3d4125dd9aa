# SPDX-License-Identifier: Apache-2.0
"""What the engine, the memory and the plans must know of a network: facts, as numbers and booleans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConditionKind = Literal["joint", "cross", "none"]


@dataclass(frozen=True, slots=True)
class ConditionSpec:
    """How a condition (text, class, ...) reaches the frames.

    kind: `joint`: its tokens are the first ones of the self-attention sequence. `cross`: every layer has keys
        and values of its own for it, written once. `none`: the network takes no condition.
    tokens: K/V rows of one condition in every layer; 0 with `none`.
    shape: of the tensor of one condition, as `VideoModel.condition` returns it.
    """

    kind: ConditionKind
    tokens: int
    shape: tuple[int, ...]


NO_CONDITION = ConditionSpec("none", 0, (0,))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of a network, and what the keys and values of a frame depend on.

    num_frames: frames that the network was trained to see together; the default size of a memory.
    tokens_per_frame, channels: of a frame, as solver and engine see it.
    layers, heads, kv_heads, head_dim: of the pages.
    movable: whether keys stay valid while the video grows beyond `num_frames` (rotary positions).
    longest: frames after which positions end; None: never.
    forgets: K/V of a finished frame depend on itself and on earlier frames only. Otherwise every visible
        frame must be fed in every pass.
    frames_see_later: every frame sees all frames of the pass, later ones too.
    condition_sees_frames: the tokens of a joint condition see the frames as well.
    """

    num_frames: int
    tokens_per_frame: int
    channels: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    condition: ConditionSpec = NO_CONDITION
    movable: bool = True
    longest: int | None = None
    forgets: bool = True
    frames_see_later: bool = False
    condition_sees_frames: bool = False

    @property
    def context_tokens(self) -> int:
        """Tokens of a condition in the self-attention sequence."""
        return self.condition.tokens if self.condition.kind == "joint" else 0
