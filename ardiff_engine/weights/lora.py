# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates (Hu et al. 2021) from files, merged into the weights:

    weight += strength·(alpha / r)·up @ down
    weight += strength·diff,  bias += strength·diff_b,  modulation += strength·diff_m

alpha is in the file (kohya, lightx2v), in adapter_config.json beside it (PEFT), given, or absent: then
alpha / r is 1.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.parsing import read_json
from ardiff_engine.weights.safetensors_file import SafetensorsFile
from ardiff_engine.weights.wan_layout import official_name

_FRONTS = ("generator_lora.", "base_model.model.", "diffusion_model.", "transformer.", "unet.", "model.")
_FLAT_FRONT = "lora_unet_"
_OTHERS = ("critic_lora.",)  # of the training, not of the model
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
        path: .safetensors in the layout of PEFT, kohya (also flat), lightx2v or diffusers.
        scale: the strength.
        alpha: for files that do not hold it.

    Raises, before any weight is changed:
        CheckpointError: keys that match nothing (they are listed), half a pair, other shapes, no update.
        ConfigError: a scale or alpha that is not a finite number.
    """
    for name, value in (("scale", scale), ("alpha", alpha)):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ConfigError(f"load_lora: {name} is {value!r}, expected a finite number.")
    file = SafetensorsFile(path)
    updates = _updates(file, model)
    parameters = dict(model.named_parameters())
    if alpha is None:
        alpha = _adapter_alpha(Path(path))
    deltas: dict[str, Tensor] = {}
    for module, update in updates.items():
        _check_shapes(file, module, update.parts, parameters)
        for target, delta in _deltas(file, module, update.parts, scale, alpha).items():
            deltas[target] = deltas[target] + delta if target in deltas else delta
    with torch.no_grad():
        for target, delta in deltas.items():
            parameter = parameters[target]
            parameter.copy_((parameter.float() + delta.to(parameter.device)).to(parameter.dtype))
    return len(deltas)


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
            raise CheckpointError(f"{file.path}: an update {list(shape)} of {target}; the model has {found}.")
    if math.prod(shapes.get("alpha", ())) != 1:
        raise CheckpointError(f"{file.path}: the alpha of {module} is no single number.")


def _deltas(
    file: SafetensorsFile, module: str, parts: Mapping[str, str], scale: float, alpha: float | None
) -> dict[str, Tensor]:
    """Parameter name -> what is added to it, float32."""

    def read(kind: str) -> Tensor:
        return file.read(parts[kind], torch.device("cpu"), torch.float32)

    deltas = {f"{module}.{_PARAMETER[k]}": scale * read(k) for k in _PARAMETER if k in parts}
    if ("down" in parts) != ("up" in parts):
        raise CheckpointError(
            f"{file.path}: {module} has only one half of a low-rank pair: {sorted(parts.values())}."
        )
    if "down" in parts:
        up, down = read("up"), read("down")
        rank = down.shape[0]
        own = float(read("alpha")) if "alpha" in parts else 0.0
        strength = scale * (own or alpha or rank) / rank
        low_rank = strength * (up.flatten(1) @ down.flatten(1))
        target = f"{module}.weight"
        whole = low_rank.reshape(up.shape[0], *down.shape[1:])
        deltas[target] = deltas[target] + whole if target in deltas else whole
    elif "alpha" in parts and not deltas:
        raise CheckpointError(f"{file.path}: {module} has an alpha and no update.")
    return deltas


def _adapter_alpha(path: Path) -> float | None:
    """PEFT keeps it beside the weights."""
    config = (path if path.is_dir() else path.parent) / "adapter_config.json"
    values = read_json(config) if config.is_file() else {}
    alpha = values.get("lora_alpha") if isinstance(values, dict) else None
    return float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else None
