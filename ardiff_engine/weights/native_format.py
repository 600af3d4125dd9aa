# SPDX-License-Identifier: Apache-2.0
"""Our own format: a folder with `config.json` and `model.safetensors`.

`config.json` is the model's config with "model_type" (models.registry) and "format" (1). The same
text is in the header of the weights, so the weights alone suffice, and a folder that mixes two saves is
noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ardiff_engine import arguments
from ardiff_engine.errors import CheckpointError, ConfigError, explain
from ardiff_engine.files import staged
from ardiff_engine.models.registry import Config, Kind, config_of, kind_named, kind_of
from ardiff_engine.parsing import MAX_JSON_BYTES, parse_json, read_bounded, shown
from ardiff_engine.settings import build
from ardiff_engine.weights.fit import check_layers, fill
from ardiff_engine.weights.safetensors_file import SafetensorsFile, write_safetensors

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
METADATA_NAME = "ardiff"

Model = TypeVar("Model", bound=nn.Module)


def save_model(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, which is made if it is absent.

    Both files are complete on the disk before either replaces an older one.

    Raises CheckpointError if the disk is full or the folder cannot be written; older files are then
    unchanged.
    """
    text = json.dumps(_describe(model), indent=2) + "\n"
    target = arguments.path("folder", folder)
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
) -> nn.Module:
    """The model that `save_model` wrote, in evaluation mode. Without `config.json` the header of the weights
    is used.

    Raises:
        CheckpointError: damaged or missing files, another format version, weights that do not fit the config,
            or a config and weights of two different saves.
        ConfigError: settings that no model can have.
    """
    source = arguments.path("folder", folder)
    file = SafetensorsFile(source)
    stored = stored_config(file)
    described = source / CONFIG_NAME
    found = _parse(read_bounded(described, MAX_JSON_BYTES), str(described)) if described.exists() else stored
    if found is None:
        raise CheckpointError(
            explain(
                str(source),
                got=f"no {CONFIG_NAME}",
                expected=f"{CONFIG_NAME} beside {WEIGHTS_NAME}",
                fix="Save the model again.",
            )
        )
    if stored is not None and stored != found:
        raise CheckpointError(
            explain(
                f"{CONFIG_NAME} of {source} is not the one of its weights",
                got=str(found[1]),
                expected=str(stored[1]),
                fix=f"Delete {CONFIG_NAME} to use the settings that were saved with the weights.",
            )
        )
    kind, config = found
    check_layers(config, file.shapes, str(source))
    model = build_empty(kind.model, config)
    fill(model, file, {name: name for name in file.shapes}, shapes=file.shapes, device=device, dtype=dtype)
    return model.eval()


def stored_config(file: SafetensorsFile) -> tuple[Kind, Config] | None:
    """Kind and config in the header of a weights file of our format; None for other files."""
    text = file.metadata.get(METADATA_NAME)
    return None if text is None else _parse(text, f"the header of {file.path}")


def build_empty(make: Callable[[Any], Model], config: object) -> Model:
    """The model of a config without memory for its weights (meta device); `fit.fill` gives it some."""
    with torch.device("meta"):
        return make(config)


def _describe(model: nn.Module) -> dict[str, Any]:
    return {"model_type": kind_of(model).name, "format": FORMAT, **config_of(model).to_dict()}


def _parse(text: str | bytes, origin: str) -> tuple[Kind, Config]:
    values = parse_json(text, origin)
    if not isinstance(values, dict):
        raise CheckpointError(f"{origin} holds {shown(values)}, expected a table with model_type and format.")
    if values.get("format") != FORMAT:
        raise CheckpointError(
            explain(
                origin,
                got=f"format {shown(values.get('format'))}",
                expected=f"format {FORMAT}",
                fix="Save the model again, or use the version of ardiff-engine that wrote it.",
            )
        )
    settings = {name: value for name, value in values.items() if name not in ("model_type", "format")}
    try:
        kind = kind_named(values.get("model_type"))
    except ConfigError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    try:
        return kind, build(kind.config, settings)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
