# SPDX-License-Identifier: Apache-2.0
"""Wan transformers in files: official names, diffusers' names, and the wrappings of training code.

The causal relatives save a dictionary of parts (`generator_ema`, `generator`, `critic`, …). Names carry what
wrapped the module: `model.`, FSDP, activation checkpoints, `torch.compile`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models.wan.config import WanConfig
from ardiff_engine.settings import build
from ardiff_engine.weights.fit import block_count, shape_of

Shapes = Mapping[str, tuple[int, ...]]

PARTS = ("generator_ema", "generator", "model", "state_dict")
"""Parts of a checkpoint that hold the model, the preferred one first."""
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module")
_FRONTS = ("model.", "diffusion_model.", "transformer.")
_OFFICIAL_HEAD_DIM = 128

_DIFFUSERS = (
    (r"^condition_embedder\.time_embedder\.linear_1\b", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2\b", "time_embedding.2"),
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1\b", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2\b", "text_embedding.2"),
    (r"^condition_embedder\.image_embedder\.norm1\b", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\b", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\b", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2\b", "img_emb.proj.4"),
    (r"^fps_projection\.net\.0\.proj\b", "fps_projection.0"),
    (r"^fps_projection\.net\.2\b", "fps_projection.2"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\b", "head.head"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.add_([kv])_proj\b", r".\1_img"),
    (r"\.norm_added_k\b", ".norm_k_img"),
    (r"\.to_([qkv])\b", r".\1"),
    (r"\.to_out\.0\b", ".o"),
    (r"(\.\d+)\.norm2\b", r"\1.norm3"),
    (r"\.ffn\.net\.0\.proj\b", ".ffn.0"),
    (r"\.ffn\.net\.2\b", ".ffn.2"),
)
_MARKS = ("condition_embedder.", "attn1.", "attn2.", "proj_out", "fps_projection.net.")


def official_name(name: str) -> str:
    """The official name of a parameter or module, from diffusers' name or itself; without wrappers."""
    name = unwrapped(name)
    if any(mark in name for mark in _MARKS) or name.endswith("scale_shift_table") or ".ffn.net." in name:
        for pattern, replacement in _DIFFUSERS:
            name = re.sub(pattern, replacement, name)
    return re.sub(r"^(blocks\.\d+)\.norm2\.(weight|bias)$", r"\1.norm3.\2", name)


def unwrapped(name: str) -> str:
    """Without what training code puts around a module, in whatever order and number."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    for front in _FRONTS:
        name = name.removeprefix(front)
    return name


def wan_names(shapes: Shapes, origin: str) -> dict[str, str]:
    """Official name -> name in the file, of the first of `PARTS` that the file has.

    CheckpointError: two tensors of one name.
    """
    stored = list(shapes)
    for part in PARTS:
        inside = [name for name in stored if name.startswith(f"{part}.")]
        if inside:
            stored = inside
            break
    names: dict[str, str] = {}
    for name in stored:
        bare = name
        for part in PARTS:
            bare = bare.removeprefix(f"{part}.")
        own = official_name(bare)
        if own in names:
            raise CheckpointError(
                f"{origin}: {names[own]!r} and {name!r} are both {own!r}. Keep one model in it."
            )
        names[own] = name
    return names


def read_wan_config(shapes: Shapes, given: Mapping[str, Any], origin: str) -> WanConfig:
    """Sizes from shapes by official name; `given` adds or replaces what shapes do not show.

    That is `heads` (width / 128 if not given) and `text_tokens` (512). CheckpointError: no Wan transformer.
    """
    width, channels, *patch = shape_of(shapes, "patch_embedding.weight", 5, origin)
    values, _ = shape_of(shapes, "head.head.weight", 2, origin)
    if "heads" not in given and width % _OFFICIAL_HEAD_DIM:
        raise CheckpointError(
            f"{origin}: width {width} does not tell the number of heads, as it is no multiple of "
            f"{_OFFICIAL_HEAD_DIM}. Give config={{'heads': …}}, or a folder with its config.json."
        )
    read: dict[str, Any] = {
        "width": width,
        "depth": block_count(shapes, "blocks.", origin),
        "heads": max(1, width // _OFFICIAL_HEAD_DIM),
        "mlp_width": shape_of(shapes, "blocks.0.ffn.0.weight", 2, origin)[0],
        "channels": channels,
        "out_channels": values // (patch[1] * patch[2]),
        "patch": tuple(patch),
        "text_dim": shape_of(shapes, "text_embedding.0.weight", 2, origin)[1],
        "frequency_dim": shape_of(shapes, "time_embedding.0.weight", 2, origin)[1],
        "image_dim": shapes["img_emb.proj.0.weight"][0] if "img_emb.proj.0.weight" in shapes else None,
        "fps_embedding": "fps_embedding.weight" in shapes,
    }
    try:
        return build(WanConfig, {**read, **given})
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
