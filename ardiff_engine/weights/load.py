# SPDX-License-Identifier: Apache-2.0
"""Models from official checkpoints, with their sizes read from the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ardiff_engine.errors import CheckpointError, explain
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.ar_diffusion.transformer import ARDiffusionTransformer
from ardiff_engine.models.dit.positions import rope_frequencies
from ardiff_engine.models.titok.autoencoder import TiTok
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.settings import build
from ardiff_engine.weights.fit import check_layers, fill
from ardiff_engine.weights.native_format import build_empty, stored_config
from ardiff_engine.weights.official_layout import OfficialNames, read_config
from ardiff_engine.weights.safetensors_file import SafetensorsFile
from ardiff_engine.weights.titok_layout import read_titok_config, titok_names

ROPE_TOLERANCE = 1e-3

Config = TypeVar("Config", ARDiffusionConfig, TiTokConfig)
Path = str | os.PathLike[str]


def load_ar_diffusion(
    path: Path,
    config: ARDiffusionConfig | Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ARDiffusionTransformer:
    """The transformer of a stage-2 checkpoint, in evaluation mode.

    Args:
        path: a .safetensors file, or a folder with `model.safetensors`: official layout, bare transformer
            names, or our own format. A bare file without context gets an all-zero one, with a warning.
        config: None reads sizes from the file and takes the released settings for what shapes do not show
            (see `official_layout.read_config`). A mapping replaces single settings. A full config is used as
            it is.
        device, dtype: of the weights.

    Raises:
        UnsafeCheckpointError: a pickle-based file.
        CheckpointError: a damaged file, missing, unknown or misshapen tensors, NaN or infinity, RoPE
            frequencies that this model does not compute.
        ConfigError: settings that contradict the file or each other.
    """
    file = SafetensorsFile(path)
    origin = str(file.path)
    names = OfficialNames.read(file.shapes, origin)
    if not isinstance(config, ARDiffusionConfig):
        own = _own_config(file, config or {}, ARDiffusionConfig)
        config = own or read_config(names, file.shapes, config or {}, origin)
    zeros = ("context_embedding",) if names.bare and "context_embedding" not in names.model else ()
    check_layers(config, file.shapes, origin)
    model = build_empty(ARDiffusionTransformer, config)
    for name in names.rope:
        _check_rope(file, name, config)
    fill(model, file, names.model, shapes=names.shapes(file.shapes), device=device, dtype=dtype, zeros=zeros)
    if zeros:
        warnings.warn(f"{origin} holds no context; the model got an all-zero one", stacklevel=2)
    return model.eval()


def load_titok(
    path: Path,
    config: TiTokConfig | Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TiTok:
    """The frame autoencoder of a stage-1 checkpoint, in evaluation mode.

    Args:
        path: a .safetensors file, or a folder with `model.safetensors`: official layout (also under `vae.`)
            or our own.
        config: None reads sizes from the file (see `titok_layout.read_titok_config`). A mapping replaces
            single settings. A full config is used as it is.
        device, dtype: of the weights.

    Raises:
        UnsafeCheckpointError: a pickle-based file.
        CheckpointError: a damaged file, missing, unknown or misshapen tensors, NaN or infinity.
        ConfigError: settings that contradict the file or each other.
    """
    file = SafetensorsFile(path)
    names = titok_names(file.shapes)
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    if not isinstance(config, TiTokConfig):
        own = _own_config(file, config or {}, TiTokConfig)
        config = own or read_titok_config(shapes, config or {}, str(file.path))
    check_layers(config, file.shapes, str(file.path))
    model = build_empty(TiTok, config)
    fill(model, file, names, shapes=shapes, device=device, dtype=dtype)
    return model.eval()


def _own_config(file: SafetensorsFile, given: Mapping[str, Any], kind: type[Config]) -> Config | None:
    stored = stored_config(file)
    if stored is None:
        return None
    own = stored[1]
    if not isinstance(own, kind):
        raise CheckpointError(
            explain(
                f"kind of model in {file.path}",
                got=type(own).__name__,
                expected=kind.__name__,
                fix="Use weights.load_model, which loads either kind.",
            )
        )
    return build(kind, {**own.to_dict(), **given})


def _check_rope(file: SafetensorsFile, name: str, config: ARDiffusionConfig) -> None:
    expected = rope_frequencies(config.head_dim)
    shape = file.shapes[name]
    fits = config.positions == "rope" and shape == tuple(expected.shape)
    if not fits or not torch.allclose(
        file.read(name, torch.device("cpu"), torch.float64), expected, rtol=ROPE_TOLERANCE
    ):
        raise CheckpointError(
            explain(
                f"RoPE frequencies {name!r} of {file.path}",
                got=f"other values, shape {list(shape)}",
                expected=f"10000 ** (-2 j / {config.head_dim}) with positions={config.positions!r}",
                fix="Weights that were trained with other frequencies cannot be used.",
            )
        )
