# SPDX-License-Identifier: Apache-2.0
"""Wan transformers from files of official code, of its causal relatives, and of diffusers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ardiff_engine import arguments
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.parsing import read_json
from ardiff_engine.weights.fit import check_fit, fill
from ardiff_engine.weights.native_format import build_empty
from ardiff_engine.weights.safetensors_file import SafetensorsFile
from ardiff_engine.weights.wan_layout import read_wan_config, wan_names

_HINTS = {"num_heads": "heads", "num_attention_heads": "heads", "text_len": "text_tokens", "eps": "eps"}


@dataclass(frozen=True, slots=True)
class WanFile:
    """names: official name -> name in the file. shapes: by official name."""

    file: SafetensorsFile
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    config: WanConfig

    def empty(self) -> WanTransformer:
        """The model without weights."""
        return build_empty(WanTransformer, self.config)


def load_wan(
    path: str | os.PathLike[str],
    config: WanConfig | Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WanTransformer:
    """The transformer of a Wan checkpoint, in evaluation mode.

    Args:
        path: a .safetensors file, an index of shards, or a folder with either, also under `transformer/`, as
            diffusers' pipelines have it; official, diffusers' or Self-Forcing-style names (`generator_ema`
            is preferred to `generator`). A `.pt` goes through `ardiff convert` first.
        config: None reads sizes from shapes, and heads and text length from config.json beside them, if
            there is one. A mapping replaces single settings. A full config is used as it is.
        device, dtype: of the weights.

    Raises:
        UnsafeCheckpointError: a pickle-based file.
        CheckpointError: a damaged file; missing, unknown or misshapen tensors, with the nearest names.
        ConfigError: settings that contradict the file or each other.
    """
    found = open_wan(path, config)
    model = found.empty()
    fill(model, found.file, found.names, shapes=found.shapes, device=device, dtype=dtype)
    return model.eval()


def open_wan(
    path: str | os.PathLike[str],
    config: WanConfig | Mapping[str, Any] | None = None,
    *,
    like: Path | None = None,
) -> WanFile:
    """What `load_wan` would load: names, shapes and sizes, from headers alone. The same errors.

    like: the folder of the model that it was made from: heads are as wide where no config.json lies beside.
    """
    place = arguments.path("path", path)
    if (place / "transformer").is_dir():
        place = place / "transformer"
    file = SafetensorsFile(place)
    origin = str(file.path)
    names = wan_names(file.shapes, origin)
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    if not isinstance(config, WanConfig):
        hints = _hints(place) or _as_wide(shapes, {} if like is None else _values(like))
        config = read_wan_config(shapes, {**hints, **(config or {})}, origin)
    found = WanFile(file, names, shapes, config)
    check_fit({name: tuple(own.shape) for name, own in found.empty().state_dict().items()}, shapes, origin)
    return found


def _hints(place: Path) -> dict[str, Any]:
    """What shapes do not show, from the config.json of official code or diffusers."""
    values = _values(place)
    return {ours: values[theirs] for theirs, ours in _HINTS.items() if theirs in values}


def _as_wide(shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of the width that the config.json of another model says."""
    heads = next((values[name] for name in ("num_attention_heads", "num_heads") if name in values), None)
    wide = values.get("attention_head_dim")
    if wide is None and isinstance(values.get("dim"), int) and isinstance(heads, int) and heads > 0:
        wide = values["dim"] // heads
    width = shapes.get("patch_embedding.weight", (0,))[0]
    return {"heads": width // wide} if isinstance(wide, int) and wide > 0 and width % wide == 0 else {}


def _values(place: Path) -> dict[str, Any]:
    config = (place if place.is_dir() else place.parent) / "config.json"
    values = read_json(config) if config.is_file() else {}
    return values if isinstance(values, dict) else {}
