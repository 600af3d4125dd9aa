# SPDX-License-Identifier: Apache-2.0
"""Wan's transformer on whole clips: official numbers under every frame mask, and diffusers' class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import generate_weights

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.frame_mask import block_causal, teacher_forced
from ardiff_engine.weights.wan_layout import official_name

FOLDER = Path(__file__).parent / "golden" / "wan"


def official(name: str) -> tuple[WanTransformer, dict[str, torch.Tensor], dict]:
    golden = np.load(FOLDER / f"{name}.npz")
    config = json.loads(str(golden["config"]))
    model = WanTransformer(WanConfig.from_official(config)).eval()
    generate_weights(model)
    numbers = {key: torch.from_numpy(golden[key]) for key in golden.files if golden[key].dtype.kind in "fbi"}
    return model, numbers, config


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@torch.no_grad()
def test_bidirectional() -> None:
    model, golden, config = official("bidirectional")
    t = golden["t"][:, None].expand(golden["x"].shape[:2])
    y = model.forward_clip(golden["x"], t, golden["text"])
    assert error(y, golden["y_official"]) <= 1e-5
    # One block of all frames is the same thing.
    assert error(model.forward_clip(golden["x"], t, golden["text"], block=config["frames"]), y) <= 1e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip_causal_c1", {"block": 1}),
        ("clip_causal_c3", {"block": 3}),
        ("clip_causal_c3_local6", {"block": 3, "window": 6}),
        ("clip_first_1_3_3", {"block": 3, "first": 1}),
    ],
)
@torch.no_grad()
def test_under_a_frame_mask(name: str, options: dict[str, int]) -> None:
    model, golden, _ = official(name)
    frames, block = golden["x"].shape[1], options["block"]
    visible = block_causal(frames, block, first=options.get("first"), window=options.get("window"))
    assert torch.equal(visible, golden["visible_frames"])
    y = model.forward_clip(golden["x"], golden["t"], golden["text"], **options)
    assert error(y, golden["y"]) <= 1e-5


@torch.no_grad()
def test_teacher_forcing() -> None:
    model, golden, _ = official("clip_teacher_c3")
    assert torch.equal(teacher_forced(golden["x"].shape[1], 3), golden["visible_frames"])
    y = model.forward_clip(golden["x"], golden["t"], golden["text"], 3, history=golden["clean"])
    assert error(y, golden["y"]) <= 1e-5


@torch.no_grad()
def test_names_and_timesteps_per_frame_of_wan_2_2() -> None:
    model, golden, _ = official("x_wan22_dit")
    assert error(model.forward_clip(golden["x"], golden["t"], golden["text"]), golden["y"]) <= 1e-5
    y = model.forward_clip(golden["x"], golden["t_tokens"], golden["text"])
    assert error(y, golden["y_tokens"]) <= 1e-5
    each = golden["t"].repeat_interleave(golden["t_tokens"].shape[1] // golden["t"].shape[1], dim=1)
    assert error(model.forward_clip(golden["x"], each, golden["text"]), golden["y"]) <= 1e-5


@torch.no_grad()
def test_pictures_a_second_of_skyreels() -> None:
    model, golden, config = official("x_skyreels_df")
    names = np.load(FOLDER / "x_skyreels_df.npz")
    pairs = zip(names["fps_keys"], names["fps_keys_diffusers"], strict=True)
    assert all(official_name(str(theirs)) == str(own) for own, theirs in pairs)
    assert {str(own) for own in names["fps_keys"]} <= set(model.state_dict())
    x, t, text = (golden[name] for name in ("x", "t", "text"))
    model.fps = int(golden["fps"])
    assert error(model.forward_clip(x, t, text), golden["y_df"]) <= 1e-5
    assert error(model.forward_clip(x, torch.full_like(t, 640.0), text), golden["y_sync"]) <= 1e-5
    assert error(model.forward_clip(x, t, text, config["block"]), golden["y_df_causal"]) <= 1e-5
    model.fps = 16
    assert error(model.forward_clip(x, t, text), golden["y_df"]) > 1e-3


@torch.no_grad()
def test_image_to_video_with_clip_rows() -> None:
    model, golden, config = official("x_bidirectional_i2v")
    names = np.load(FOLDER / "x_bidirectional_i2v.npz")["official_keys"]
    assert sorted(model.state_dict()) == sorted(map(str, names))
    t = golden["t"][:, None].expand(golden["x"].shape[:2])
    x = torch.cat([golden["x"], golden["y"]], dim=2)
    clip = np.random.RandomState(int(golden["clip_seed"])).standard_normal((2, 257, 1280)).astype(np.float32)
    y = model.forward_clip(x, t, golden["text"], image=torch.from_numpy(clip))
    assert error(y, golden["y_official"]) <= 1e-5


@torch.no_grad()
def test_diffusers_under_its_own_names() -> None:
    diffusers = pytest.importorskip("diffusers")
    model, golden, config = official("bidirectional")
    names = np.load(FOLDER / "bidirectional.npz")
    theirs = diffusers.WanTransformer3DModel(**config["diffusers"]).eval()
    state = model.state_dict()
    pairs = zip(names["official_keys"], names["official_to_diffusers"], strict=True)
    theirs.load_state_dict({str(other): state[str(own)] for own, other in pairs})
    y = theirs(golden["x"].transpose(1, 2), golden["t"], golden["text"]).sample.transpose(1, 2)
    t = golden["t"][:, None].expand(golden["x"].shape[:2])
    assert error(model.forward_clip(golden["x"], t, golden["text"]), y) <= 2e-5


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in WanTransformer(config).parameters())
            for config in (
                WanConfig(),
                WanConfig(5120, 40, 40, 13824),
                WanConfig(5120, 40, 40, 13824, channels=36, image_dim=1280),
                WanConfig(3072, 30, 24, 14336, channels=48, out_channels=48),
            )
        ]
    assert counts == [1_418_996_800, 14_288_491_584, 16_394_878_784, 4_999_787_712]


def test_gradients_reach_every_parameter() -> None:
    model, golden, _ = official("clip_teacher_c3")
    model.forward_clip(
        golden["x"], golden["t"], golden["text"], 3, history=golden["clean"]
    ).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_what_does_not_fit() -> None:
    model, golden, _ = official("clip_causal_c3")
    x, t, text = golden["x"], golden["t"], golden["text"]
    for arguments in [
        (x[:, :, :3], t, text),
        (x[..., :3], t, text),
        (x, t[:, :2], text),
        (x, t, text[..., :8]),
        (x, t, torch.zeros(1, 17, 32)),
    ]:
        with pytest.raises(TensorError):
            model.forward_clip(*arguments)
    with pytest.raises(TensorError):
        model.forward_clip(x, t, text, 3, history=x[:, :2])
    with pytest.raises(TensorError):
        model.forward_clip(x, t.repeat_interleave(6, dim=1), text, 3, history=x)
    with pytest.raises(TensorError):
        model.forward_clip(x, t, text, image=torch.zeros(1, 257, 1280))
    for sizes in ({"width": 100}, {"heads": 0}, {"depth": 10**6}, {"patch": (2, 2, 2)}, {"eps": 0.0}):
        with pytest.raises(ConfigError):
            WanConfig(**sizes)
    with pytest.raises(ConfigError, match="fps_embedding"):
        WanConfig(fps_embedding=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        block_causal(6, 0)
