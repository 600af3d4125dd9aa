# SPDX-License-Identifier: Apache-2.0
"""Our own format: a folder with `config.json` and `model.safetensors`.

`config.json` is the model's config with "model_type" ("ar_diffusion" or "titok") and "format" (1). The same
text is in the header of the weights, so the weights alone suffice, and a folder that mixes two saves is
noticed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, overload

import torch

from ardiff_engine.errors import CheckpointError, ConfigError, explain
from ardiff_engine.files import staged
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.ar_diffusion.transformer import ARDiffusionTransformer
from ardiff_engine.models.titok.autoencoder import TiTok
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.parsing import MAX_JSON_BYTES, parse_json, read_bounded, shown
from ardiff_engine.settings import build
from ardiff_engine.weights.fit import check_layers, fill
from ardiff_engine.weights.safetensors_file import SafetensorsFile, write_safetensors

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
METADATA_NAME = "ardiff"

_CONFIGS: dict[str, type[ARDiffusionConfig] | type[TiTokConfig]] = {
    "ar_diffusion": ARDiffusionConfig,
    "titok": TiTokConfig,
}


def save_model(model: ARDiffusionTransformer | TiTok, folder: str | os.PathLike[str]) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, which is made if it is absent.

    Both files are complete on the disk before either replaces an older one.

    Raises CheckpointError if the disk is full or the folder cannot be written; older files are then
    unchanged.
    """
    text = json.dumps(_describe(model.config), indent=2) + "\n"
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            explain(
                str(target),
                got=error.strerror,
                expected="a folder that can be made",
                fix="Choose another folder.",
            )
        ) from error
    with staged(target / WEIGHTS_NAME, target / CONFIG_NAME) as (weights, config):
        with open(weights, "xb") as file:
            write_safetensors(file, model.state_dict(), {METADATA_NAME: text, "format": "pt"})
        config.write_text(text, encoding="utf-8")


def load_model(
    folder: str | os.PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ARDiffusionTransformer | TiTok:
    """The model that `save_model` wrote, in evaluation mode. Without `config.json` the header of the weights
    is used.

    Raises:
        CheckpointError: damaged or missing files, another format version, weights that do not fit the config,
            or a config and weights of two different saves.
        ConfigError: settings that no model can have.
    """
    source = Path(folder)
    file = SafetensorsFile(source / WEIGHTS_NAME)
    stored = stored_config(file)
    described = source / CONFIG_NAME
    config = _parse(read_bounded(described, MAX_JSON_BYTES), str(described)) if described.exists() else stored
    if config is None:
        raise CheckpointError(
            explain(
                str(source),
                got=f"no {CONFIG_NAME}",
                expected=f"{CONFIG_NAME} beside {WEIGHTS_NAME}",
                fix="Save the model again.",
            )
        )
    if stored is not None and stored != config:
        raise CheckpointError(
            explain(
                f"{CONFIG_NAME} of {source} is not the one of its weights",
                got=str(config),
                expected=str(stored),
                fix=f"Delete {CONFIG_NAME} to use the settings that were saved with the weights.",
            )
        )
    check_layers(config, file.shapes, str(source))
    model = build_empty(config)
    fill(model, file, {name: name for name in file.shapes}, shapes=file.shapes, device=device, dtype=dtype)
    return model.eval()


def stored_config(file: SafetensorsFile) -> ARDiffusionConfig | TiTokConfig | None:
    """The config in the header of a weights file of our format; None for other files."""
    text = file.metadata.get(METADATA_NAME)
    return None if text is None else _parse(text, f"the header of {file.path}")


@overload
def build_empty(config: ARDiffusionConfig) -> ARDiffusionTransformer: ...
@overload
def build_empty(config: TiTokConfig) -> TiTok: ...
def build_empty(config: ARDiffusionConfig | TiTokConfig) -> ARDiffusionTransformer | TiTok:
    """The model of a config without memory for its weights (meta device); `fit.fill` gives it some."""
    with torch.device("meta"):
        model = TiTok(config) if isinstance(config, TiTokConfig) else ARDiffusionTransformer(config)
    return model


def _describe(config: ARDiffusionConfig | TiTokConfig) -> dict[str, Any]:
    kind = next(name for name, known in _CONFIGS.items() if isinstance(config, known))
    return {"model_type": kind, "format": FORMAT, **config.to_dict()}


def _parse(text: str | bytes, origin: str) -> ARDiffusionConfig | TiTokConfig:
    values = parse_json(text, origin)
    if not isinstance(values, dict):
        raise CheckpointError(f"{origin} holds {shown(values)}, expected a table with model_type and format.")
    kind, version = values.get("model_type"), values.get("format")
    if not isinstance(kind, str) or kind not in _CONFIGS or version != FORMAT:
        raise CheckpointError(
            explain(
                origin,
                got=f"model_type {shown(kind)}, format {shown(version)}",
                expected=f"model_type one of {list(_CONFIGS)} and format {FORMAT}",
                fix="Save the model again, or use the version of ardiff-engine that wrote it.",
            )
        )
    settings = {name: value for name, value in values.items() if name not in ("model_type", "format")}
    try:
        return build(_CONFIGS[kind], settings)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
