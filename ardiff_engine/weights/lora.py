# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates (Hu et al. 2021) from files, merged into the weights:

    weight += strength·(alpha / r)·up @ down
    weight += strength·diff,  bias += strength·diff_b,  modulation += strength·diff_m

alpha is in the file (kohya, lightx2v; diffusers: in its header), given, in adapter_config.json beside it
(PEFT), or absent: then alpha / r is 1.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.parsing import parse_json, read_json, shown
from ardiff_engine.weights.safetensors_file import SafetensorsFile
from ardiff_engine.weights.wan_layout import official_name

_FRONTS = ("generator_lora.", "base_model.model.", "diffusion_model.", "transformer.", "unet.", "model.")
_FLAT_FRONT = "lora_unet_"
_OTHERS = ("critic_lora.",)  # of the training, not of the model
_FILES = ("adapter_model", "pytorch_lora_weights", "model")
"""What PEFT, diffusers and people call the file of a folder."""
_LISTED = 8
_KINDS = (
    (r"\.lora_(A|down)(\.default)?(\.weight)?$|[._]lora(_linear_layer)?\.down\.weight$", "down"),
    (r"\.lora_(B|up)(\.default)?(\.weight)?$|[._]lora(_linear_layer)?\.up\.weight$", "up"),
    (r"\.alpha$", "alpha"),
    (r"\.diff$", "diff"),
    (r"\.diff_b$|\.lora_B(\.default)?\.bias$", "diff_b"),
    (r"\.diff_m$", "diff_m"),
)
_PARAMETER = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}


@dataclass(slots=True)
class _Update:
    """Of one module. parts: kind -> name in the file."""

    parts: dict[str, str] = field(default_factory=dict)


def load_lora(
    model: nn.Module, path: str | os.PathLike[str], scale: float = 1.0, *, alpha: float | None = None
) -> int:
    """Merge a LoRA file into `model`, which has Wan's official names; how many parameters changed.

    Args:
        path: .safetensors in the layout of PEFT, kohya (also flat), lightx2v or diffusers, or a folder with
            PEFT's or diffusers' file.
        scale: the strength.
        alpha: for files whose tensors do not hold it.

    Raises, before any weight is changed:
        CheckpointError: keys that match nothing (they are listed), half a pair, other shapes, no update.
        ConfigError: a scale or alpha that is not a finite number.
    """
    for name, value in (("scale", scale), ("alpha", alpha)):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ConfigError(f"load_lora: {name} is {value!r}, expected a finite number.")
    file, updates = _checked(model, path)
    parameters = dict(model.named_parameters())
    told = _Alpha(alpha) if alpha is not None else _Alpha.beside(file)
    for update in updates.values():
        for kind in update.parts:  # NaN and other dtypes
            file.read(update.parts[kind], torch.device("cpu"), torch.float32)
    changed = set()
    with torch.no_grad():
        for module, update in updates.items():
            # One module after the other: all updates together can be as large as the model in float32.
            for target, delta in _deltas(file, module, update.parts, scale, told):
                parameter = parameters[target]
                parameter.copy_((parameter.float() + delta.to(parameter.device)).to(parameter.dtype))
                changed.add(target)
    return len(changed)


def check_lora(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """What `load_lora` would refuse by names and shapes; only headers are read, and `model` may be empty."""
    _checked(model, path)


def _checked(model: nn.Module, path: str | os.PathLike[str]) -> tuple[SafetensorsFile, dict[str, _Update]]:
    file = SafetensorsFile(path, _FILES)
    updates, parameters = _updates(file, model), dict(model.named_parameters())
    for module, update in updates.items():
        _check_shapes(file, module, update.parts, parameters)
    return file, updates


@dataclass(frozen=True, slots=True)
class _Alpha:
    """What is told of modules that have no alpha of their own. by_root: rsLoRA, alpha / √r."""

    value: float | None = None
    by_root: bool = False

    @classmethod
    def beside(cls, file: SafetensorsFile) -> _Alpha:
        """Of the header (diffusers) or of adapter_config.json (PEFT)."""
        config = file.path.parent / "adapter_config.json"
        stored = file.metadata.get("lora_adapter_metadata")
        if stored is not None:
            source, values = f"the header of {file.path}", parse_json(stored, file.path)
        else:
            source, values = str(config), read_json(config) if config.is_file() else {}
        if not isinstance(values, dict):
            return cls()
        values = {str(name).removeprefix("transformer."): value for name, value in values.items()}
        alpha = values.get("lora_alpha")
        if values.get("alpha_pattern") or values.get("use_dora"):
            raise CheckpointError(
                f"{source}: alpha_pattern or use_dora is set, expected one alpha for all modules. Merge the "
                "adapter with PEFT and load the result."
            )
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
            raise CheckpointError(f"{source}: lora_alpha is {shown(alpha)}, expected a number.")
        return cls(alpha, bool(values.get("use_rslora")))

    def strength(self, own: float, rank: int) -> float:
        """What a product of this rank is multiplied by."""
        if own:  # 0 means that there is none
            return own / rank
        if not self.value:
            return 1.0
        return self.value / (rank**0.5 if self.by_root else rank)


def _updates(file: SafetensorsFile, model: nn.Module) -> dict[str, _Update]:
    """Module name -> its update."""
    modules = {name for name, _ in model.named_modules()}
    flat = {name.replace(".", "_"): name for name in modules}
    found: dict[str, _Update] = {}
    unmatched: list[str] = []
    for stored in file.shapes:
        if stored.startswith(_OTHERS):
            continue
        kind, name = _kind_of(stored)
        module = _module_named(name, modules, flat)
        if kind is None or module is None:
            unmatched.append(stored)
        else:
            found.setdefault(module, _Update()).parts[kind] = stored
    if unmatched:
        more = f", … ({len(unmatched)} in all)" if len(unmatched) > _LISTED else ""
        raise CheckpointError(
            f"{file.path}: keys that match no part of the model: {', '.join(unmatched[:_LISTED])}{more}. "
            "Is it for another model?"
        )
    if not found:
        raise CheckpointError(f"{file.path} holds no update. Expected a LoRA file.")
    return found


def _kind_of(stored: str) -> tuple[str | None, str]:
    for pattern, kind in _KINDS:
        if match := re.search(pattern, stored):
            return kind, stored[: match.start()]
    return None, stored


def _module_named(name: str, modules: set[str], flat: Mapping[str, str]) -> str | None:
    if name.startswith(_FLAT_FRONT):
        # By the model's own names: an underscore in the file may be a dot or an underscore.
        return flat.get(name.removeprefix(_FLAT_FRONT))
    before = ""
    while name != before:
        before = name
        for front in _FRONTS:
            name = name.removeprefix(front)
    own = official_name(f"{name}.weight").removesuffix(".weight")
    return own if own in modules else None


def _check_shapes(
    file: SafetensorsFile, module: str, parts: Mapping[str, str], parameters: Mapping[str, Tensor]
) -> None:
    """Everything that `_deltas` multiplies and adds goes together; two thin halves can make a giant."""
    shapes = {kind: file.shapes[stored] for kind, stored in parts.items()}
    updates = [(f"{module}.{_PARAMETER[kind]}", shapes[kind]) for kind in _PARAMETER if kind in shapes]
    if "up" in shapes and "down" in shapes:
        up, down = shapes["up"], shapes["down"]
        if min(len(up), len(down)) < 2 or math.prod(up[1:]) != down[0]:
            raise CheckpointError(f"{file.path}: {module} has halves of ranks {up[1:]} and {down[:1]}.")
        updates.append((f"{module}.weight", (up[0], *down[1:])))
    for target, shape in updates:
        parameter = parameters.get(target)
        if parameter is None or tuple(parameter.shape) != shape:
            found = "no such parameter" if parameter is None else list(parameter.shape)
            raise CheckpointError(
                f"{file.path}: an update {list(shape)} of {target}; the model has {found}. Is it "
                "for a model of another size?"
            )
    if math.prod(shapes.get("alpha", ())) != 1:
        raise CheckpointError(f"{file.path}: the alpha of {module} is no single number.")
    if ("down" in shapes) != ("up" in shapes):
        raise CheckpointError(
            f"{file.path}: {module} has only one half of a low-rank pair: {sorted(parts.values())}."
        )
    if not updates:
        raise CheckpointError(f"{file.path}: {module} has an alpha and no update.")


def _deltas(
    file: SafetensorsFile, module: str, parts: Mapping[str, str], scale: float, told: _Alpha
) -> Iterator[tuple[str, Tensor]]:
    """Names of parameters and what is added to them, float32."""

    def read(kind: str) -> Tensor:
        return file.read(parts[kind], torch.device("cpu"), torch.float32)

    for kind, parameter in _PARAMETER.items():
        if kind in parts:
            yield f"{module}.{parameter}", scale * read(kind)
    if "down" in parts:
        up, down = read("up"), read("down")
        strength = scale * told.strength(float(read("alpha")) if "alpha" in parts else 0.0, len(down))
        low_rank = strength * (up.flatten(1) @ down.flatten(1))
        yield f"{module}.weight", low_rank.reshape(up.shape[0], *down.shape[1:])
