# SPDX-License-Identifier: Apache-2.0
"""Wan autoencoders in files: official names, or those of diffusers' `AutoencoderKLWan`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ardiff_engine.errors import CheckpointError
from ardiff_engine.parsing import read_json
from ardiff_engine.weights.fit import shape_of
from ardiff_engine.weights.safetensors_file import SafetensorsFile

Shapes = Mapping[str, tuple[int, ...]]

# Of Wan 2.1's latents, channel by channel.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

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
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_vae(path: Path) -> VAEFile:
    """A safetensors file, or a diffusers folder with its config.json.

    Sizes follow from the shapes. Mean and deviation of the latents come from the folder's config.json, or are
    Wan 2.1's where there are 16 channels. CheckpointError: not such an autoencoder.
    """
    file = SafetensorsFile(_weights_of(path))
    origin = str(file.path)
    names = official_names(file.shapes)
    shapes = {name: file.shapes[stored] for name, stored in names.items()}
    channels = shape_of(shapes, "conv2.weight", 5, origin)[0]
    width = shape_of(shapes, "encoder.conv1.weight", 5, origin)[0]
    res_blocks = _blocks_before_resampling(shapes, origin)
    last = [stage * (res_blocks + 1) + res_blocks - 1 for stage in range(4)]
    widths = [shape_of(shapes, f"encoder.downsamples.{n}.residual.6.weight", 5, origin)[0] for n in last]
    if any(stage % width for stage in widths):
        raise CheckpointError(
            f"{origin}: stages of widths {widths}; expected multiples of the first, {width}."
        )
    mean, std = _latent_constants(path, channels, origin)
    multipliers = tuple(stage // width for stage in widths)
    return VAEFile(file, names, shapes, width, channels, multipliers, res_blocks, mean, std)


def official_names(shapes: Shapes) -> dict[str, str]:
    """Official name -> name in the file, whichever of the two layouts it has."""
    if not any(name.startswith("quant_conv.") for name in shapes):
        return {name: name for name in shapes}
    first = {name.split(".")[4] for name in shapes if name.startswith("decoder.up_blocks.0.resnets.")}
    return {_official(name, len(first)): name for name in shapes}


def _official(name: str, per_stage: int) -> str:
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)\.", name):
        place = per_stage if match[3] is None else int(match[3])
        name = f"decoder.upsamples.{int(match[1]) * (per_stage + 1) + place}.{name[match.end() :]}"
    head, _, rest = name.rpartition(".")
    block, _, layer = head.rpartition(".")
    if re.search(r"\.(downsamples|upsamples|middle)\.\d+$", block):
        layer = _INSIDE.get(layer, "shortcut" if layer == "conv_shortcut" else layer)
        return f"{block}.{layer}.{rest}"
    return name


def _blocks_before_resampling(shapes: Shapes, origin: str) -> int:
    places = [re.match(r"encoder\.downsamples\.(\d+)\.resample\.", name) for name in shapes]
    found = [int(match[1]) for match in places if match]
    if not found or not min(found):
        raise CheckpointError(f"{origin} has no encoder.downsamples.*.resample; expected a Wan autoencoder.")
    return min(found)


def _weights_of(path: Path) -> Path:
    inside = path / "diffusion_pytorch_model.safetensors"
    return inside if inside.is_file() else path


def _latent_constants(path: Path, channels: int, origin: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = path / "config.json"
    if path.is_dir() and config.is_file():
        values = read_json(config)
        if isinstance(values, dict) and "latents_mean" in values and "latents_std" in values:
            return tuple(values["latents_mean"]), tuple(values["latents_std"])
    if channels != len(MEAN):
        raise CheckpointError(
            f"{origin} has {channels} channels, and a file does not tell their mean and deviation. "
            "Give the diffusers folder with its config.json, or load into a WanVAE(mean=…, std=…)."
        )
    return MEAN, STD
