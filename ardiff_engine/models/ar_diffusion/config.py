# SPDX-License-Identifier: Apache-2.0
"""Sizes and options of the AR-Diffusion transformer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ardiff_engine.arguments import integer
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.models.dit.positions import rope_frequencies
from ardiff_engine.models.spec import ConditionSpec, ModelSpec
from ardiff_engine.settings import MAX_LAYERS, MAX_SIZE

Mask = Literal["temporal_causal", "video_temporal_causal", "none"]
Positions = Literal["rope", "absolute"]
Merge = Literal["separate_norm", "share_norm", "sharenorm_shift_first_t", "reproduce"]


@dataclass(frozen=True, slots=True)
class ARDiffusionConfig:
    """Configuration of `ARDiffusionTransformer`; the defaults have the published size (672 M parameters).

    mask: which tokens see which. `temporal_causal`: frames see earlier frames and the context, the context
        sees itself. `video_temporal_causal` (released weights): the context also sees all frames, so future
        frames leak. `none`: everything sees everything.
    positions: `rope` (rotary, with QK-norm) or `absolute` (frozen sin-cos table over num_frames *
        tokens_per_frame).
    merge: how normalisation, modulation and residual meet. `separate_norm`: pre-norm. `share_norm` (released
        weights): the residual is replaced by its LayerNorm. `sharenorm_shift_first_t`: as before, and the
        context is modulated by the first frame's timestep. `reproduce`: an ordinary DiT that uses the first
        frame's timestep for every token.
    num_classes: None for one fixed (trained) context, else a context per class plus one more for "no class".
    null_class: row of the context table that stands for "no class" in guidance; None: the last row for class
        models, an all-zero context for models without classes.
    """

    num_frames: int = 16
    tokens_per_frame: int = 32
    channels: int = 4
    width: int = 1152
    depth: int = 28
    heads: int = 16
    context_tokens: int = 77
    context_dim: int = 768
    num_classes: int | None = None
    mask: Mask = "temporal_causal"
    positions: Positions = "rope"
    merge: Merge = "separate_norm"
    mlp_ratio: float = 4.0
    null_class: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_frames",
            "tokens_per_frame",
            "channels",
            "width",
            "depth",
            "heads",
            "context_tokens",
            "context_dim",
        ):
            value = getattr(self, name)
            most = MAX_LAYERS if name == "depth" else MAX_SIZE
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ConfigError(
                    explain(
                        f"ARDiffusionConfig.{name}",
                        got=repr(value),
                        expected=f"an integer from 1 to {most}",
                        fix="Give a possible size.",
                    )
                )
        for name, kind in (("mask", Mask), ("positions", Positions), ("merge", Merge)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    explain(
                        f"ARDiffusionConfig.{name}",
                        got=repr(getattr(self, name)),
                        expected=" | ".join(get_args(kind)),
                        fix="Choose one of them.",
                    )
                )
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(
                explain(
                    "ARDiffusionConfig.width / heads",
                    got=f"{self.width} / {self.heads}",
                    expected="an even whole number (the head dimension)",
                    fix="Change width or heads.",
                )
            )
        if self.num_classes is not None:
            integer("ARDiffusionConfig.num_classes", self.num_classes)
        if self.num_classes is not None and not 1 <= self.num_classes <= MAX_SIZE:
            raise ConfigError(
                explain(
                    "ARDiffusionConfig.num_classes",
                    got=self.num_classes,
                    expected=f"None, or from 1 to {MAX_SIZE}",
                    fix="Use None without classes.",
                )
            )
        if self.null_class is not None and not (
            self.num_classes is not None and 0 <= self.null_class < self.num_classes + 1
        ):
            raise ConfigError(
                explain(
                    "ARDiffusionConfig.null_class",
                    got=self.null_class,
                    expected=f"None, or a row 0..{self.context_rows - 1} of a class model's context table",
                    fix="Leave it None for the default.",
                )
            )
        if not 1 <= self.width * self.mlp_ratio <= MAX_SIZE:
            raise ConfigError(
                explain(
                    "ARDiffusionConfig.mlp_ratio",
                    got=self.mlp_ratio,
                    expected=f"a positive number, and an MLP of at most {MAX_SIZE}",
                    fix="Use 4.0 as published.",
                )
            )

    @property
    def takes_history(self) -> bool:
        """Whether clips can be predicted from clean frames before: no token depends on a later frame."""
        return self.mask == "temporal_causal" and self.merge in ("separate_norm", "share_norm")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def context_rows(self) -> int:
        return 1 if self.num_classes is None else self.num_classes + 1

    @property
    def spec(self) -> ModelSpec:
        context = ConditionSpec("joint", self.context_tokens, (self.context_tokens, self.context_dim))
        rotary = self.positions == "rope"
        return ModelSpec(
            num_frames=self.num_frames,
            tokens_per_frame=self.tokens_per_frame,
            channels=self.channels,
            layers=self.depth,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.head_dim,
            condition=context,
            movable=rotary,
            views_per_layer=True,
            views_per_head=True,
            # A token is one place, so a frame is as many as it has tokens.
            frame_angles=tuple(
                self.tokens_per_frame * rate for rate in rope_frequencies(self.head_dim).tolist()
            )
            if rotary
            else None,
            longest=None if rotary else self.num_frames,
            # With the other masks the context carries later frames back to earlier ones, and two merge modes
            # use the first frame's timestep for other tokens.
            forgets=self.mask == "temporal_causal" and self.merge in ("separate_norm", "share_norm"),
            frames_see_later=self.mask == "none",
            condition_sees_frames=self.mask != "temporal_causal",
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ARDiffusionConfig:
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ConfigError(
                    explain(
                        "ARDiffusionConfig key",
                        got=repr(key),
                        expected=", ".join(known),
                        fix=f"Did you mean {near[0]!r}?" if near else "Remove it.",
                    )
                )
        return cls(**values)
