# SPDX-License-Identifier: Apache-2.0
"""What a folder of a text-to-video model holds, found and compared before any weight is read.

Two layouts: diffusers' (`model_index.json`, transformer/, vae/, text_encoder/, tokenizer/, scheduler/), and
official files side by side. Parts may lie elsewhere: a distilled transformer is often one file for the
folder of the model that it was distilled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import torch

from ardiff_engine import arguments
from ardiff_engine.codec import TAEHV, WanVAE
from ardiff_engine.codec.taehv import TAEHVFile
from ardiff_engine.codec.wan.layout import VAEFile, open_vae
from ardiff_engine.conditions.umt5_file import UMT5File, holds_umt5
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models.wan import WanExperts, WanTransformer
from ardiff_engine.models.wan.video import PICTURES
from ardiff_engine.parsing import read_json, shown
from ardiff_engine.pipeline.files import refuse_steered
from ardiff_engine.pipeline.image_encoder import ImageFiles, find_image_encoder
from ardiff_engine.pipeline.pixels import FRAMES, Size, VideoVAE, in_tiles
from ardiff_engine.weights.load_wan import WanFile, load_wan, open_wan
from ardiff_engine.weights.lora import check_lora, load_lora
from ardiff_engine.weights.safetensors_file import INDEX_SUFFIX, NAMES, unsafe

PathName = str | PathLike[str]

INDEX = "model_index.json"
VAE_NAMES = ("Wan2.1_VAE", "Wan2.2_VAE", "vae")
_KINDS = (
    "WanPipeline",
    "WanImageToVideoPipeline",
    "WanVideoToVideoPipeline",
    "SkyReelsV2Pipeline",
    "SkyReelsV2DiffusionForcingPipeline",
)


@dataclass(frozen=True, slots=True)
class VideoParts:
    """text: None where there is no text encoder. scheduler: diffusers' settings, {} without them. lora: what
    is merged into each transformer, none: (). tile: rows and columns of latents that are decoded at a time,
    None: all. image: CLIP's vision tower, of models that see a picture.
    low_noise, boundary: the second transformer of models with two, and the timestep below which it is used;
    `transformer` is then the one for high noise."""

    transformer: WanFile
    vae: VAEFile | TAEHVFile
    text: UMT5File | None
    scheduler: dict[str, object]
    lora: tuple[Path, ...] = ()
    image: ImageFiles | None = None
    tile: Size | None = None
    low_noise: WanFile | None = None
    boundary: float = 0.0

    @property
    def transformers(self) -> list[WanFile]:
        return [own for own in (self.transformer, self.low_noise) if own is not None]

    def empty_transformer(self) -> WanTransformer | WanExperts:
        high = self.transformer.empty()
        return high if self.low_noise is None else WanExperts(high, self.low_noise.empty(), self.boundary)

    def load_transformer(self, device: torch.device, dtype: torch.dtype) -> WanTransformer | WanExperts:
        """With its weights, and a LoRA merged."""
        high, *low = both = [
            load_wan(own.file.path, own.config, device=device, dtype=dtype) for own in self.transformers
        ]
        for model, file in zip(both, self.lora, strict=False):
            load_lora(model, file)
        return WanExperts(high, low[0], self.boundary) if low else high

    def empty_vae(self) -> VideoVAE:
        return self.vae.empty() if isinstance(self.vae, TAEHVFile) else WanVAE.empty(self.vae)

    def load_vae(self, device: torch.device) -> VideoVAE:
        path = self.vae.file.path
        if isinstance(self.vae, TAEHVFile):
            return TAEHV.from_file(path, device=device)
        return WanVAE.from_file(path, mean=self.vae.mean, std=self.vae.std, device=device)


def holds_video_parts(name: PathName) -> bool:
    """Whether this is a folder in diffusers' layout, or one with files of official names."""
    place = arguments.path("model", name)
    if place.is_file():
        return place.name.endswith((".safetensors", INDEX_SUFFIX))
    return (place / INDEX).is_file() or any((place / f"{name}.safetensors").is_file() for name in VAE_NAMES)


def takes_picture(model: WanTransformer | WanExperts) -> bool:
    """Whether it is an image-to-video model: with channels of a first picture beside the latents."""
    return any(own.name == PICTURES for own in model.spec.frame_inputs)


def check_inputs(model: WanTransformer | WanExperts) -> None:
    """ConfigError for what image-to-video models take and a pipeline does not make."""
    config = model.config
    with_picture = 2 * config.out_channels + FRAMES
    if takes_picture(model) and config.channels != with_picture:
        raise ConfigError(
            f"the transformer takes {config.channels} channels for latents of {config.out_channels}: it must "
            f"take as many, or {with_picture} with those of a first picture."
        )


def find_parts(
    name: PathName,
    *,
    transformer: PathName | None = None,
    vae: PathName | None = None,
    text: PathName | Literal[False] | None = None,
    lora: PathName | Sequence[PathName] | None = None,
    tile: Size | None = None,
) -> VideoParts:
    """What `name` holds; the other paths take the place of its parts. text: False leaves the encoder out.
    lora: see `weights.load_lora`; [of high noise, of low noise] for models with two transformers. tile: see
    `VideoParts`.

    CheckpointError: a part that is missing, damaged, in shards of different saves, or of another kind of
    model; a LoRA for another one. ConfigError: parts that do not fit each other.
    """
    place = arguments.path("model", name)
    if not place.exists():
        raise CheckpointError(
            f"model: there is no {shown(str(place))}, expected the folder of a text-to-video model. "
            "Nothing is downloaded: fetch the model first, and give its path."
        )
    if transformer is None:
        refuse_steered(place)
    if (place / INDEX).is_file():
        _check_kind(place / INDEX)
    low_noise, boundary = _low_noise(place)
    if low_noise is not None and transformer is not None:
        raise ConfigError(
            f"{place} has two transformers, for high and low noise: transformer= is for models with one."
        )
    found = VideoParts(
        transformer=open_wan(_transformer(place))
        if transformer is None
        else open_wan(transformer, like=place / "transformer"),
        vae=_opened_vae(_vae(place) if vae is None else arguments.path("vae", vae)),
        text=_text(place, text),
        scheduler=_scheduler(place),
        tile=tile,
        low_noise=low_noise,
        boundary=boundary,
    )
    in_tiles(found.empty_vae(), tile)  # refuses tiles that cannot be
    found = replace(found, lora=_loras(lora, found.transformers))
    found.empty_transformer()  # experts of different sizes are told now
    config = found.transformer.config
    if config.image_dim is not None:
        root = place.parent if place.is_file() else place
        found = replace(found, image=find_image_encoder(root, config))
    if found.vae.channels != config.out_channels:
        raise ConfigError(
            f"{found.vae.file.path} has latents of {found.vae.channels} channels, and "
            f"{found.transformer.file.path} makes {config.out_channels}: they belong to different models."
        )
    if found.text is not None and found.text.width != config.text_dim:
        raise ConfigError(
            f"the text encoder in {found.text.file.path} is {found.text.width} wide, and "
            f"{found.transformer.file.path} reads prompts of {config.text_dim}: give the encoder it was "
            "trained with."
        )
    return found


def _loras(given: PathName | Sequence[PathName] | None, transformers: Sequence[WanFile]) -> tuple[Path, ...]:
    """One for each transformer, which it fits; or none."""
    if given is None:
        return ()
    each = list(given) if isinstance(given, list | tuple) else [given]
    if len(each) != len(transformers):
        raise ConfigError(
            f"lora: got {len(each)}, expected one for each of the {len(transformers)} transformers, that of "
            "high noise first."
        )
    files = tuple([arguments.path("lora", own) for own in each])
    for own, file in zip(transformers, files, strict=True):
        check_lora(own.empty(), file)
    return files


def _check_kind(index: Path) -> None:
    values = read_json(index)
    kind = values.get("_class_name") if isinstance(values, dict) else None
    if kind not in _KINDS:
        raise CheckpointError(
            f"{index} is of a {shown(kind)}, expected one of {', '.join(_KINDS)}. Other models of "
            "diffusers are not known here."
        )


def _low_noise(place: Path) -> tuple[WanFile | None, float]:
    """The second transformer of a folder in diffusers' layout, and its boundary; none: nothing and 0."""
    values = read_json(place / INDEX) if (place / INDEX).is_file() else {}
    if not isinstance(values, dict) or not any(values.get("transformer_2") or ()):
        return None, 0.0
    ratio = values.get("boundary_ratio")
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise CheckpointError(
            f"{place / INDEX} has two transformers and boundary_ratio {shown(ratio)}, expected the share of "
            "the noise below which the second is used, between 0 and 1."
        )
    return open_wan(place / "transformer_2"), 1000 * float(ratio)


def _transformer(place: Path) -> Path:
    if place.is_file():
        return place
    inside = place / "transformer" if (place / "transformer").is_dir() else place
    held = [inside / f"{name}{end}" for name in NAMES for end in (".safetensors", INDEX_SUFFIX)]
    if not any(file.is_file() for file in held):
        _refuse_pickles(inside)
        raise CheckpointError(
            f"{place} holds no transformer: expected transformer/ as diffusers write it, or "
            f"{held[0].name} or {held[2].name}. Give its file by transformer=… (--transformer), or check "
            "the path."
        )
    return inside


def _opened_vae(path: Path) -> VAEFile | TAEHVFile:
    if path.is_dir():
        return open_vae(path)
    return TAEHVFile.open(path) or open_vae(path)


def _vae(place: Path) -> Path:
    root = place.parent if place.is_file() else place
    if (root / "vae").is_dir():
        return root / "vae"
    for name in VAE_NAMES:
        if (root / f"{name}.safetensors").is_file():
            return root / f"{name}.safetensors"
        if (root / f"{name}.pth").is_file():
            raise unsafe(root / f"{name}.pth")
    *names, last = [f"{name}.safetensors" for name in VAE_NAMES]
    raise CheckpointError(
        f"{root} holds no autoencoder: expected vae/ as diffusers write it, {', '.join(names)} or {last}. "
        "Give its file by vae=… (--vae)."
    )


def _refuse_pickles(folder: Path) -> None:
    for suffix in (".pt", ".pth", ".bin"):
        for name in NAMES:
            if (folder / f"{name}{suffix}").is_file():
                raise unsafe(folder / f"{name}{suffix}")


def _text(place: Path, given: PathName | Literal[False] | None) -> UMT5File | None:
    if given is False or (given is None and not holds_umt5(place)):
        return None
    return UMT5File.open((place.parent if place.is_file() else place) if given is None else given)


def _scheduler(place: Path) -> dict[str, object]:
    file = place / "scheduler" / "scheduler_config.json"
    values = read_json(file) if file.is_file() else {}
    return values if isinstance(values, dict) else {}
