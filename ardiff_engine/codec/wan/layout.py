# SPDX-License-Identifier: Apache-2.0
"""Wan autoencoders in files: official names, or those of diffusers' `AutoencoderKLWan`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ardiff_engine.codec.wan.constants import MEAN_21, MEAN_22, STD_21, STD_22
from ardiff_engine.errors import CheckpointError
from ardiff_engine.parsing import read_json
from ardiff_engine.weights.fit import shape_of
from ardiff_engine.weights.safetensors_file import SafetensorsFile

Shapes = Mapping[str, tuple[int, ...]]

_PARTS = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
)
_INSIDE = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


Constants = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class VAEFile:
    """What a file holds, before any weight is read.

    names: official name -> name in the file. shapes: by official name. mean, std: of the latents.
    """

    file: SafetensorsFile
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    width: int
    channels: int
    multipliers: tuple[int, ...]
    res_blocks: int
    residual: bool
    decoder_width: int
    mean: Sequence[float] | Tensor
    std: Sequence[float] | Tensor


def open_vae(
    path: Path,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> VAEFile:
    """A safetensors file, an index of shards, or a folder with either and diffusers' config.json.

    Sizes follow from the shapes. Mean and deviation of the latents are those given, those of a config.json
    beside the weights, or those that were published for that many channels. CheckpointError: not such an
    autoencoder.
    """
    file = SafetensorsFile(path)
    origin = str(file.path)
    names = official_names(file.shapes)
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    channels = shape_of(shapes, "conv2.weight", 5, origin)[0]
    width = shape_of(shapes, "encoder.conv1.weight", 5, origin)[0]
    decoder_width = shape_of(shapes, "decoder.head.2.weight", 5, origin)[1]
    residual = any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes)
    res_blocks = _blocks_before_resampling(shapes, residual, origin)
    last = [_last_block(stage, res_blocks, residual) for stage in range(4)]
    widths = [shape_of(shapes, f"{block}.residual.6.weight", 5, origin)[0] for block in last]
    if any(stage % width for stage in widths):
        raise CheckpointError(
            f"{origin}: stages of widths {widths}; expected multiples of the first, {width}."
        )
    multipliers = tuple(stage // width for stage in widths)
    if mean is None or std is None:
        own = _latent_constants(file.path.parent, channels, residual, origin)
        mean, std = (own[0] if mean is None else mean), (own[1] if std is None else std)
    return VAEFile(
        file, names, shapes, width, channels, multipliers, res_blocks, residual, decoder_width, mean, std
    )


def official_names(shapes: Shapes) -> dict[str, str]:
    """Official name -> name in the file, whichever of the two layouts it has."""
    if not any(name.startswith("quant_conv.") for name in shapes):
        return {name: name for name in shapes}
    blocks = len({name.split(".")[4] for name in shapes if name.startswith("decoder.up_blocks.0.resnets.")})
    residual = any(".upsampler." in name for name in shapes)
    return {_official(name, blocks, residual): name for name in shapes}


def _official(name: str, blocks: int, residual: bool) -> str:
    """blocks: in a stage of the decoder, without resampling; the encoder has one fewer."""
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers?(?:\.0)?)\.", name):
        stage, place = int(match[1]), int(match[2] or blocks)
        inner = f"{stage}.upsamples.{place}" if residual else str(stage * (blocks + 1) + place)
        name = f"decoder.upsamples.{inner}.{name[match.end() :]}"
    elif match := re.match(r"encoder\.down_blocks\.(\d+)\.(?:resnets\.(\d+)|downsampler)\.", name):
        inner = f"{match[1]}.downsamples.{match[2] or blocks - 1}"
        name = f"encoder.downsamples.{inner}.{name[match.end() :]}"
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    head, _, rest = name.rpartition(".")
    block, _, layer = head.rpartition(".")
    if re.search(r"\.(downsamples|upsamples|middle)\.\d+$", block):
        layer = _INSIDE.get(layer, "shortcut" if layer == "conv_shortcut" else layer)
        return f"{block}.{layer}.{rest}"
    return name


def _blocks_before_resampling(shapes: Shapes, residual: bool, origin: str) -> int:
    stages = r"encoder\.downsamples\.0\.downsamples" if residual else r"encoder\.downsamples"
    places = [re.match(stages + r"\.(\d+)\.resample\.", name) for name in shapes]
    found = [int(match[1]) for match in places if match]
    if not found or not min(found):
        raise CheckpointError(f"{origin} has no encoder.downsamples.*.resample; expected a Wan autoencoder.")
    return min(found)


def _last_block(stage: int, res_blocks: int, residual: bool) -> str:
    if residual:
        return f"encoder.downsamples.{stage}.downsamples.{res_blocks - 1}"
    return f"encoder.downsamples.{stage * (res_blocks + 1) + res_blocks - 1}"


def _latent_constants(
    folder: Path, channels: int, residual: bool, origin: str
) -> tuple[Constants, Constants]:
    config = folder / "config.json"
    if config.is_file():
        values = read_json(config)
        if isinstance(values, dict) and "latents_mean" in values and "latents_std" in values:
            return tuple(values["latents_mean"]), tuple(values["latents_std"])
    mean, std = (MEAN_22, STD_22) if residual else (MEAN_21, STD_21)
    if channels != len(mean):
        raise CheckpointError(
            f"{origin} has {channels} channels, and a file does not tell their mean and deviation. "
            "Give mean= and std=, or the diffusers folder with its config.json."
        )
    return mean, std
