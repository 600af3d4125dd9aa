# SPDX-License-Identifier: Apache-2.0
"""Our own format: what is saved comes back, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from test_titok import TINY

from ardiff_engine import files
from ardiff_engine.errors import CheckpointError, ConfigError
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer, TiTok
from ardiff_engine.weights import load_ar_diffusion, load_model, load_titok, native_format, save_model

SMALL = ARDiffusionConfig(
    num_frames=3, tokens_per_frame=2, channels=4, width=16, depth=2, heads=2, context_tokens=3, context_dim=6
)
VARIANTS = [
    SMALL,
    dataclasses.replace(SMALL, positions="absolute", mask="video_temporal_causal", merge="share_norm"),
    dataclasses.replace(SMALL, num_classes=5, null_class=0, mlp_ratio=2.5),
    TINY,
    dataclasses.replace(TINY, temporal=True, num_frames=2),
]


def model_of(config: object) -> ARDiffusionTransformer | TiTok:
    torch.manual_seed(0)
    return TiTok(config) if hasattr(config, "patch_size") else ARDiffusionTransformer(config)  # type: ignore[arg-type]


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("config", VARIANTS)
def test_round_trip(tmp_path: Path, config: object) -> None:
    model = model_of(config)
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert loaded.config == config and type(loaded) is type(model) and not loaded.training
    assert_same(model, loaded)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert [parameter.requires_grad for parameter in loaded.parameters()] == [
        parameter.requires_grad for parameter in model.parameters()
    ]
    described = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert described["format"] == 1
    assert described["model_type"] == ("titok" if isinstance(model, TiTok) else "ar_diffusion")


def test_official_loaders_read_it(tmp_path: Path) -> None:
    for config in VARIANTS:
        model = model_of(config)
        save_model(model, tmp_path)
        right, wrong = load_ar_diffusion, load_titok
        if isinstance(model, TiTok):
            right, wrong = wrong, right  # type: ignore[assignment]
        assert right(tmp_path).config == config
        assert_same(right(tmp_path / "model.safetensors"), model)
        with pytest.raises(CheckpointError, match="kind of model"):
            wrong(tmp_path)


def test_dtype(tmp_path: Path) -> None:
    model = model_of(SMALL)
    save_model(model.bfloat16(), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.x_embedder.weight.dtype == torch.float32
    assert torch.equal(loaded.x_embedder.weight, model.x_embedder.weight.float())
    narrow = load_model(tmp_path, dtype=torch.bfloat16)
    assert narrow.x_embedder.weight.dtype == torch.bfloat16
    assert narrow.frequencies.dtype == torch.float64


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    old, new = model_of(SMALL), model_of(TINY)
    save_model(old, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(new, tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(load_model(tmp_path), old)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="folder"):
        save_model(model_of(SMALL), tmp_path / "file" / "folder")


def test_mixed_saves_are_noticed(tmp_path: Path) -> None:
    save_model(model_of(SMALL), tmp_path)
    text = (tmp_path / "config.json").read_text().replace("separate_norm", "share_norm")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    assert load_model(tmp_path).config == SMALL


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", CheckpointError, "JSON"),
        ("[]", CheckpointError, "model_type"),
        ("[" * 100_000, CheckpointError, "JSON"),
        (" " * (2 << 20), CheckpointError, "bytes"),
        ('{"model_type": "llama", "format": 1}', CheckpointError, "llama"),
        ('{"model_type": "titok", "format": 2}', CheckpointError, "format 1"),
        ('{"model_type": "titok", "format": 1, "token_sice": 3}', ConfigError, "token_size"),
        (
            '{"model_type": "titok", "format": 1, "channel_multipliers": 3}',
            ConfigError,
            "channel_multipliers",
        ),
        ('{"model_type": "ar_diffusion", "format": 1, "width": "wide"}', ConfigError, "width"),
    ],
)
def test_bad_config(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    save_model(model_of(SMALL), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ar", {"depth": 10**6}),
        ("ar", {"depth": 1000}),
        ("ar", {"width": 2**24, "heads": 2**20}),
        ("ar", {"width": 10**12, "heads": 10**6}),
        ("ar", {"num_classes": 2**62}),
        ("ar", {"mlp_ratio": 1e300}),
        ("ar", {"num_frames": 2**40, "tokens_per_frame": 2**40}),
        ("titok", {"encoder_layers": 1000}),
        ("titok", {"decoder_layers": 10**9}),
        ("titok", {"res_blocks": 1024}),
        ("titok", {"image_size": 2**24}),
        ("titok", {"channel_multipliers": [1] * 60, "patch_size": 2**59}),
        ("titok", {"channel_multipliers": [1] * 50_000}),
        ("titok", {"num_latent_tokens": 2**40}),
    ],
)
def test_a_config_of_a_giant_costs_nothing(
    tmp_path: Path, kind: str, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the header of the weights says the same. Only what has few layers is built, on no device."""
    model = model_of(SMALL if kind == "ar" else TINY)
    monkeypatch.setattr(native_format, "_describe", lambda _: {**described, **settings})
    described = {"model_type": "ar_diffusion" if kind == "ar" else "titok", "format": 1}
    described |= model.config.to_dict()
    save_model(model, tmp_path)
    if settings.keys() & {"depth", "encoder_layers", "decoder_layers", "res_blocks"}:
        monkeypatch.setattr(native_format, "build_empty", lambda _: pytest.fail("a giant is built"))
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        load_model(tmp_path)
    assert str(tmp_path) in str(refused.value) and len(str(refused.value)) < 5000


def test_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        load_model(tmp_path / "none")


def test_full_size_model_is_not_allocated_for_a_wrong_file(tmp_path: Path) -> None:
    save_model(model_of(SMALL), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_ar_diffusion(tmp_path, ARDiffusionConfig(width=65536, depth=4, heads=512))
