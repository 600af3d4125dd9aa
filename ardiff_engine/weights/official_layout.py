# SPDX-License-Identifier: Apache-2.0
"""Names and sizes in the official AR-Diffusion checkpoints (stage 2).

Such a file holds `context_emb` or `class_emb`, the transformer under `diffusion_model.model.`, and buffers of
the noise schedule under `diffusion_model.`. Files with the bare transformer names, and our own, are read as
well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ardiff_engine.errors import CheckpointError, ConfigError, explain
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.weights.fit import block_count, overlay, shape_of

Shapes = Mapping[str, tuple[int, ...]]

MODEL_PREFIX = "diffusion_model.model."
SCHEDULE_PREFIX = "diffusion_model."
SCHEDULE_BUFFERS = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
    )
)
ROPE_SUFFIX = "rotary_emb.freqs"
CONTEXT_NAMES = ("context_emb", "class_emb")
RELEASED_SETTINGS: Mapping[str, Any] = {
    "num_frames": 16,
    "tokens_per_frame": 32,
    "heads": 16,
    "context_tokens": 77,
    "mask": "video_temporal_causal",
    "merge": "share_norm",
}
OFFICIAL_NULL_CLASS = 0


@dataclasses.dataclass(frozen=True, slots=True)
class OfficialNames:
    """How the tensors of a file are called in the model.

    Attributes:
        model: model name -> name in the file.
        rope: names of stored RoPE frequencies (one shared tensor, listed up to depth + 1 times).
        classes: the context table came as `class_emb`.
        bare: no name has the official prefix.
    """

    model: Mapping[str, str]
    rope: tuple[str, ...]
    classes: bool
    bare: bool

    @classmethod
    def read(cls, shapes: Shapes, origin: str) -> OfficialNames:
        """Sorts the names of a file: schedule buffers and a bundled `vae.` are left out, unknown names stay.

        Raises CheckpointError when two tensors of the file mean the same one of the model.
        """
        model: dict[str, str] = {}
        rope: list[str] = []
        classes, bare = False, True
        for stored in shapes:
            name = stored.removeprefix("module.")
            if name.startswith("vae."):
                continue
            bare = bare and not name.startswith(SCHEDULE_PREFIX)
            if name.startswith(SCHEDULE_PREFIX) and name.removeprefix(SCHEDULE_PREFIX) in SCHEDULE_BUFFERS:
                continue
            name = name.removeprefix(MODEL_PREFIX)
            if name.endswith(ROPE_SUFFIX):
                rope.append(stored)
                continue
            if name in CONTEXT_NAMES:
                classes = classes or name == "class_emb"
                name = "context_embedding"
            if name in model:
                raise CheckpointError(
                    explain(
                        f"{origin} holds {name!r} twice",
                        got=f"{model[name]!r} and {stored!r}",
                        expected="one of them",
                        fix="Save the model again without the copy.",
                    )
                )
            model[name] = stored
        return cls(model=model, rope=tuple(rope), classes=classes, bare=bare)

    def shapes(self, stored: Shapes) -> dict[str, tuple[int, ...]]:
        """Shapes by model name; a context [tokens, dim] counts as [1, tokens, dim]."""
        named = {name: stored[source] for name, source in self.model.items()}
        context = named.get("context_embedding")
        if context is not None and len(context) == 2:
            named["context_embedding"] = (1, *context)
        return named


def read_config(
    names: OfficialNames, stored: Shapes, given: Mapping[str, Any], origin: str
) -> ARDiffusionConfig:
    """The configuration that a file implies.

    Width, depth, MLP ratio, channels, context sizes, number of classes, kind of positions, head count (with
    QK-norm) and num_frames · tokens_per_frame (with absolute positions) are read from shapes. The rest comes
    from `given`, and else from the released settings: 16 frames of 32 tokens, 16 heads, 77 context
    tokens, mask `video_temporal_causal`, merge `share_norm`, null class 0.

    Raises:
        CheckpointError: not a checkpoint of this model.
        ConfigError: `given` contradicts the file, or is needed and absent.
    """
    shapes = names.shapes(stored)
    read = _sizes(names, shapes, origin)
    unread = {
        name: value for name, value in RELEASED_SETTINGS.items() if name not in read and name not in given
    }
    settings = overlay(read, given, origin)
    if "pos_embed" in shapes:
        unread.update(_split_positions(shape_of(shapes, "pos_embed", 3, origin)[1], settings, origin))
    if "heads" in unread and (settings["width"] % 16 or settings["width"] // 16 % 2):
        raise ConfigError(
            explain(
                f"heads of {origin}",
                got=f"width {settings['width']}, which 16 heads do not divide evenly",
                expected="heads in config, because absolute positions do not show them",
                fix='Pass e.g. config={"heads": 4}.',
            )
        )
    if names.classes and "null_class" not in settings:
        unread["null_class"] = OFFICIAL_NULL_CLASS
    return ARDiffusionConfig.from_dict({**unread, **settings})


def _sizes(names: OfficialNames, shapes: Shapes, origin: str) -> dict[str, Any]:
    width, channels = shape_of(shapes, "x_embedder.weight", 2, origin)
    hidden = shape_of(shapes, "blocks.0.mlp.fc1.weight", 2, origin)[0]
    read: dict[str, Any] = {
        "width": width,
        "channels": channels,
        "depth": block_count(shapes, "blocks.", origin),
        "mlp_ratio": _ratio(hidden, width),
        "context_dim": shape_of(shapes, "c_embedder.weight", 2, origin)[1],
        "positions": _positions(shapes, origin),
    }
    if "context_embedding" in shapes:
        rows, read["context_tokens"], _ = shape_of(shapes, "context_embedding", 3, origin)
        read["num_classes"] = rows - 1 if names.classes or rows > 1 else None
    if read["positions"] == "rope":
        (head_dim,) = shape_of(shapes, "blocks.0.attn.q_norm.weight", 1, origin)
        if width % head_dim:
            raise CheckpointError(
                explain(
                    f"head size of {origin}",
                    got=head_dim,
                    expected=f"a divisor of width {width}",
                    fix="Check the file.",
                )
            )
        read["heads"] = width // head_dim
    return read


def _ratio(hidden: int, width: int) -> float:
    """A ratio with int(width * ratio) == hidden; the plain quotient may round below it."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _positions(shapes: Shapes, origin: str) -> str:
    absolute, rope = "pos_embed" in shapes, "blocks.0.attn.q_norm.weight" in shapes
    if absolute == rope:
        raise CheckpointError(
            explain(
                f"positions of {origin}",
                got="both pos_embed and q_norm" if absolute else "neither pos_embed nor q_norm",
                expected="pos_embed (absolute) or q_norm and k_norm (rope)",
                fix="The file is incomplete or belongs to another kind of model.",
            )
        )
    return "absolute" if absolute else "rope"


def _split_positions(count: int, settings: Mapping[str, Any], origin: str) -> dict[str, int]:
    frames, tokens = settings.get("num_frames"), settings.get("tokens_per_frame")
    if frames is None:
        frames = RELEASED_SETTINGS["num_frames"] if tokens is None else count // tokens
    if tokens is None:
        tokens = count // frames
    if frames * tokens != count:
        raise ConfigError(
            explain(
                f"num_frames and tokens_per_frame of {origin}",
                got=f"{frames} and {tokens}",
                expected=f"a product of {count}, the rows of pos_embed",
                fix='Pass both, e.g. config={"num_frames": 4, "tokens_per_frame": 8}.',
            )
        )
    return {"num_frames": frames, "tokens_per_frame": tokens}
