# SPDX-License-Identifier: Apache-2.0
"""The kinds of networks by name, as `config.json` of a saved one says it ("model_type")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.pictures import PictureCodec
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.parsing import shown


class Config(Protocol):
    """Settings of a network: a dataclass of plain values, which `settings.build` reads again."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """model: makes the network of a config, which it keeps as `model.config`.
    codec: of an autoencoder, what brings pictures into the layout of a transformer; None: a transformer.
    """

    name: str
    config: type[Config]
    model: Callable[[Any], nn.Module]
    codec: Callable[[Any, ModelSpec], PictureCodec] | None = None


_KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Make a kind known by its name. ConfigError if another one has it."""
    known = _KINDS.setdefault(kind.name, kind)
    if known != kind:
        raise ConfigError(f"A kind of model named {kind.name!r} exists already ({known.config.__name__}).")


def kinds() -> list[str]:
    return sorted(_KINDS)


def kind_named(name: object) -> Kind:
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(
            f"Model type {shown(name)} is none of {kinds()}: import the package that registers it."
        )
    return _KINDS[name]


def config_of(model: nn.Module) -> Config:
    """The config of a network of a registered kind."""
    config: Config | Any = getattr(model, "config", None)
    if all(kind.config is not type(config) for kind in _KINDS.values()):
        raise ConfigError(
            f"{type(model).__name__} is of no registered kind ({kinds()}): see models.registry.register."
        )
    return config


def kind_of(model: nn.Module) -> Kind:
    """The kind of a network, by the type of its config."""
    config = type(config_of(model))
    return next(kind for kind in _KINDS.values() if kind.config is config)
