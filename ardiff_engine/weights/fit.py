# SPDX-License-Identifier: Apache-2.0
"""Does a file fit a model? Names and shapes are compared before any weight is read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError, ConfigError, explain
from ardiff_engine.weights.safetensors_file import SafetensorsFile

LAYER_SETTINGS = ("depth", "encoder_layers", "decoder_layers", "res_blocks")
_LISTED = 8


def check_fit(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raises CheckpointError with missing and unknown names (each with the nearest one) and wrong shapes."""
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    wrong = [name for name in expected if name in given and given[name] != expected[name]]
    if not (missing or unknown or wrong):
        return
    lines = [
        *_listed("missing", missing, lambda name: _nearest(name, unknown)),
        *_listed("unknown", unknown, lambda name: _nearest(name, missing or list(expected))),
        *_listed("wrong shape", wrong, lambda name: f": {list(given[name])}, needs {list(expected[name])}"),
    ]
    raise CheckpointError(
        explain(
            f"{origin} does not fit the model",
            got=f"{len(missing)} missing, {len(unknown)} unknown, {len(wrong)} wrong shapes\n  "
            + "\n  ".join(lines)
            + "\n",
            expected=f"exactly its {len(expected)} tensors",
            fix="Check that the file and the config belong together.",
        )
    )


def fill(
    model: nn.Module,
    file: SafetensorsFile,
    names: Mapping[str, str],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    device: torch.device | str,
    dtype: torch.dtype,
    zeros: Collection[str] = (),
) -> None:
    """Gives a model that was built on the meta device the weights of `file`.

    `names` maps the model's names to those in the file, `shapes` are the file's shapes by model name (a
    leading 1 may be added), `zeros` are tensors of the model that are set to zero instead. Each tensor is
    read once and checked for NaN and infinity.

    Raises CheckpointError, before reading any tensor, if names or shapes do not fit; and for tensors that
    cannot be used. Raises ConfigError for a device that is not there.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_fit({name: shape for name, shape in expected.items() if name not in zeros}, shapes, str(file.path))
    target = usable_device(device)
    tensors = {
        name: torch.zeros(shape, device=target, dtype=dtype)
        if name in zeros
        else file.read(names[name], target, dtype).reshape(shape)
        for name, shape in expected.items()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    model.to(target)


def check_layers(config: object, shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Refuses a config with more layers than the file has tensors, before a model is built from it."""
    for name in LAYER_SETTINGS:
        layers = getattr(config, name, 0)
        if layers > len(shapes):
            raise CheckpointError(
                f"{origin} does not fit the model: {name} is {layers}, and it has {len(shapes)} tensors. "
                "Check that the file and the config belong together."
            )


def block_count(shapes: Mapping[str, tuple[int, ...]], prefix: str, origin: str) -> int:
    """How many n there are in names `{prefix}n.…`. Raises CheckpointError unless they are 0, 1, 2, …"""
    found = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    if not found or found != {str(index) for index in range(len(found))}:
        raise CheckpointError(
            explain(
                f"blocks {prefix}* of {origin}",
                got=", ".join(sorted(found)[:_LISTED]) or "none",
                expected="0, 1, 2, … without a gap",
                fix="The file is incomplete or belongs to another kind of model.",
            )
        )
    return len(found)


def shape_of(shapes: Mapping[str, tuple[int, ...]], name: str, ndim: int, origin: str) -> tuple[int, ...]:
    """The shape of a tensor from which sizes are read. Raises CheckpointError if it is absent or has another
    rank."""
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(
            explain(
                f"{origin} has no tensor {name!r}",
                got=f"{len(shapes)} other tensors{_nearest(name, list(shapes))}",
                expected="a checkpoint of this kind of model",
                fix="Check the file.",
            )
        )
    if len(shape) != ndim:
        raise CheckpointError(
            explain(
                f"tensor {name!r} of {origin}",
                got=list(shape),
                expected=f"{ndim} dimensions",
                fix="Check the file.",
            )
        )
    return shape


def overlay(read: Mapping[str, Any], given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Settings read from a file, completed by given ones. Raises ConfigError where they contradict each
    other."""
    for name, setting in given.items():
        value = tuple(setting) if isinstance(setting, list) else setting
        if name in read and read[name] != value:
            raise ConfigError(
                explain(
                    f"{name} of {origin}",
                    got=f"{value!r} in config",
                    expected=f"{read[name]!r}",
                    fix=f"Leave {name} out.",
                )
            )
    return {**read, **given}


def _nearest(name: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(name, candidates[:4096], n=1)
    return f" (nearest: {near[0]})" if near else ""


def _listed(title: str, names: list[str], remark: Callable[[str], str]) -> list[str]:
    rest = [f"{title}: … and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return [f"{title}: {name}{remark(name)}" for name in names[:_LISTED]] + rest
