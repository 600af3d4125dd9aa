# SPDX-License-Identifier: Apache-2.0
"""Every setting of every config, with every kind of wrong value, is a typed error before anything is made."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ardiff_engine.data.config import DataConfig
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.errors import ConfigError
from ardiff_engine.models import ARDiffusionConfig, TiTokConfig
from ardiff_engine.settings import build
from ardiff_engine.training.config import EncodeConfig, RunConfig, TrainConfig, VaeTrainConfig
from ardiff_engine.training.read_config import read_config, to_dict

RUN = RunConfig(output="out", steps=4)
WHOLE: dict[type, Any] = {
    TrainConfig: TrainConfig(run=RUN, model=ARDiffusionConfig(), data=DataConfig(), vae="vae"),
    VaeTrainConfig: VaeTrainConfig(run=RUN, model=TiTokConfig(patch_size=16)),
    EncodeConfig: EncodeConfig(vae="vae", videos="videos", output="out"),
    ARDiffusionConfig: ARDiffusionConfig(),
    TiTokConfig: TiTokConfig(),
    MovingDigits: MovingDigits(),
}
WRONG = {
    int: ["x", "3", True, 0.5, [], {}, [1], {"x": 1}],
    float: ["x", True, [], {}, [0.5]],
    bool: [0, 1, "true", [], {}, 0.5],
    str: [0, True, 0.5, [], {}, ["x"]],
    tuple: [0, True, "x", {}, ["x"], [0.5], [[1]], [1] * 100, [None]],
}
EXTREME = [-(2**63), -1, 0, 2**31, 2**62, 2**63 - 1, 1e-320, 1e300, -1e300]


def plain(config: Any) -> dict[str, Any]:
    """As TOML would give it: without None, lists for tuples."""

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    result: dict[str, Any] = converted(to_dict(config))
    return result


def leaves(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from leaves(hint, (*path, field.name))
        yield (*path, field.name), hint


def changed(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(values))
    table = result
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = value
    return dict(result)


def base_of(hint: Any) -> type:
    if dataclasses.is_dataclass(hint):
        return str  # anything but a table is wrong
    if typing.get_origin(hint) is tuple:
        return tuple
    if typing.get_origin(hint) is typing.Literal:
        return str
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return base_of(options[0]) if options else hint


@pytest.mark.parametrize("kind", WHOLE)
def test_every_setting_refuses_every_wrong_type(kind: type) -> None:
    values = plain(WHOLE[kind])
    tried = 0
    for path, hint in leaves(kind):
        wrong = [0, True, "x", [], 0.5] if dataclasses.is_dataclass(hint) else WRONG[base_of(hint)]
        for value in wrong:
            with pytest.raises(ConfigError, match=path[-1]):
                build(kind, changed(values, path, value))
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("kind", WHOLE)
def test_extreme_numbers_are_accepted_or_typed(kind: type) -> None:
    values = plain(WHOLE[kind])
    refused = 0
    for path, hint in leaves(kind):
        if base_of(hint) not in (int, float):
            continue
        for value in EXTREME:
            try:
                build(kind, changed(values, path, value))
            except ConfigError:
                refused += 1
    assert refused > 5


@pytest.mark.parametrize("kind", WHOLE)
def test_unknown_and_missing_names(kind: type) -> None:
    values = plain(WHOLE[kind])
    for name in ("", "x", "steps ", "x" * 10_000, "\0", "__class__", "self"):
        with pytest.raises(ConfigError, match="unknown setting"):
            build(kind, {**values, name: 1})
    required = [field for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    for field in required:
        if field.default_factory is dataclasses.MISSING:
            with pytest.raises(ConfigError, match=field.name):
                build(kind, {key: value for key, value in values.items() if key != field.name})


@pytest.mark.parametrize("kind", WHOLE)
def test_good_values_come_back(kind: type) -> None:
    assert build(kind, plain(WHOLE[kind])) == WHOLE[kind]


def test_null_is_none_where_that_is_allowed() -> None:
    assert build(ARDiffusionConfig, {"num_classes": None}).num_classes is None
    with pytest.raises(ConfigError, match="width"):
        build(ARDiffusionConfig, {"width": None})


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "given.toml").write_text('[run]\noutput = "out"\nsteps = "four"\n')
    with pytest.raises(ConfigError, match="given.toml.*run.steps"):
        read_config(TrainConfig, tmp_path / "given.toml")
