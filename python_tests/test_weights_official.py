# SPDX-License-Identifier: Apache-2.0
"""Stage-2 checkpoints in the official layout: small files of each variant, and the names at full size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import GOLDEN, official_shapes, recipe_tensor
from safetensors.torch import save_file
from torch import Tensor

from ardiff_engine.errors import CheckpointError, ConfigError, UnsafeCheckpointError
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.models.dit.positions import rope_frequencies
from ardiff_engine.weights import canonical_target, load_ar_diffusion, target_kind
from ardiff_engine.weights.native_format import build_empty
from ardiff_engine.weights.official_layout import SCHEDULE_BUFFERS, OfficialNames, read_config

SMALL = ARDiffusionConfig(
    num_frames=16,
    tokens_per_frame=2,
    channels=4,
    width=32,
    depth=2,
    heads=16,
    context_tokens=3,
    context_dim=6,
    mask="video_temporal_causal",
    positions="absolute",
    merge="share_norm",
)
CLASSES = dataclasses.replace(SMALL, num_classes=4, null_class=0)
ROPE = dataclasses.replace(SMALL, positions="rope", heads=4, tokens_per_frame=32)
PREFIX = "diffusion_model.model."


def official(config: ARDiffusionConfig) -> dict[str, Tensor]:
    """A checkpoint of the given sizes as the official trainer writes it."""
    tensors = {}
    for name, tensor in ARDiffusionTransformer(config).state_dict().items():
        if name == "context_embedding":
            stored = "class_emb" if config.num_classes else "context_emb"
            shape = tuple(tensor.shape if config.num_classes else tensor.shape[1:])
            tensors[stored] = recipe_tensor(stored, shape)
        elif name == "pos_embed":
            tensors[PREFIX + name] = tensor
        else:
            tensors[PREFIX + name] = recipe_tensor(name, tuple(tensor.shape))
    for buffer in SCHEDULE_BUFFERS:
        tensors[f"diffusion_model.{buffer}"] = torch.full((1000,), float("inf"))
    if config.positions == "rope":
        tensors[f"{PREFIX}rotary_emb.freqs"] = rope_frequencies(config.head_dim).float()
    return tensors


def write(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("config", [SMALL, CLASSES, ROPE])
def test_sizes_and_weights_are_read(tmp_path: Path, config: ARDiffusionConfig) -> None:
    tensors = official(config)
    model = load_ar_diffusion(write(tmp_path, tensors))
    assert model.config == config and not model.training
    for name, tensor in model.state_dict().items():
        if name != "context_embedding":
            assert torch.equal(tensor, tensors[PREFIX + name]), name
    if config.num_classes:
        assert torch.equal(model.context_embedding, tensors["class_emb"])
        assert torch.equal(model.null_context(1)[0], tensors["class_emb"][0])
    else:
        assert torch.equal(model.context_embedding, tensors["context_emb"][None])
    assert torch.equal(model.frequencies, rope_frequencies(config.head_dim))


def test_golden_network_through_a_file(tmp_path: Path) -> None:
    golden = np.load(GOLDEN / "stage2_tiny.npz")
    stored = np.load(GOLDEN / "stage2_tiny_weights_share_norm_vtc_abs.npz")
    tensors = {PREFIX + name[3:]: torch.from_numpy(stored[name]) for name in stored if name.startswith("w::")}
    tensors[f"{PREFIX}pos_embed"] = torch.from_numpy(golden["pos_embed"]).reshape(1, 12, 32)
    tensors["context_emb"] = torch.zeros(5, 12)
    model = load_ar_diffusion(write(tmp_path, tensors), {"num_frames": 4, "heads": 4})
    assert model.config.tokens_per_frame == 3
    with torch.no_grad():
        out = model.forward_clip(*(torch.from_numpy(golden[name]) for name in ("x", "t", "context")))
    expected = torch.from_numpy(golden["out__share_norm__video_temporal_causal__abs"])
    assert float((out - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("keys", "positions", "classes"),
    [
        ("stage2_uncond", "absolute", None),
        ("stage2_ucf_class", "absolute", 101),
        ("stage2_rope_qknorm", "rope", None),
    ],
)
def test_full_size_names_and_shapes(keys: str, positions: str, classes: int | None) -> None:
    stored = official_shapes(keys)
    names = OfficialNames.read(stored, keys)
    config = read_config(names, stored, {}, keys)
    assert config == ARDiffusionConfig(
        positions=positions,  # type: ignore[arg-type]
        num_classes=classes,
        null_class=None if classes is None else 0,
        mask="video_temporal_causal",
        merge="share_norm",
    )
    model = build_empty(ARDiffusionTransformer, config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == names.shapes(stored)
    ignored = set(stored) - set(names.model.values()) - set(names.rope)
    assert ignored == {
        name for name in stored if name.count(".") == 1 and name.startswith("diffusion_model.")
    }
    assert len(names.rope) == (29 if positions == "rope" else 0)


@pytest.mark.parametrize("alias", ["rotary_emb.freqs", "blocks.1.attn.rotary_emb.freqs", None])
def test_rope_aliases(tmp_path: Path, alias: str | None) -> None:
    tensors = official(ROPE)
    frequencies = tensors.pop(f"{PREFIX}rotary_emb.freqs")
    if alias is not None:
        tensors[PREFIX + alias] = frequencies
    assert load_ar_diffusion(write(tmp_path, tensors)).config == ROPE


def test_other_rope_frequencies_are_refused(tmp_path: Path) -> None:
    tensors = official(ROPE)
    tensors[f"{PREFIX}rotary_emb.freqs"] = rope_frequencies(ROPE.head_dim).float() * 1.1
    with pytest.raises(CheckpointError, match="RoPE frequencies"):
        load_ar_diffusion(write(tmp_path, tensors))


@pytest.mark.parametrize("prefix", ["", "module.", "module." + PREFIX])
def test_other_prefixes(tmp_path: Path, prefix: str) -> None:
    tensors = {
        prefix + name.removeprefix(PREFIX): tensor for name, tensor in official(SMALL).items() if "." in name
    }
    tensors = {
        name: tensor for name, tensor in tensors.items() if name.split(".")[-1] not in SCHEDULE_BUFFERS
    }
    tensors["context_emb"] = torch.ones(3, 6)
    model = load_ar_diffusion(write(tmp_path, tensors))
    assert model.config == SMALL and torch.equal(model.context_embedding, torch.ones(1, 3, 6))


def test_bare_file_without_context(tmp_path: Path) -> None:
    tensors = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in official(SMALL).items()
        if name.startswith(PREFIX)
    }
    path = write(tmp_path, tensors)
    with pytest.warns(UserWarning, match="holds no context"):
        model = load_ar_diffusion(path, {"context_tokens": 3})
    assert model.config == SMALL and not model.context_embedding.any()
    with pytest.warns(UserWarning):
        assert load_ar_diffusion(path).config.context_tokens == 77


def test_official_file_without_context_is_refused(tmp_path: Path) -> None:
    tensors = official(SMALL)
    del tensors["context_emb"]
    with pytest.raises(CheckpointError, match="missing: context_embedding"):
        load_ar_diffusion(write(tmp_path, tensors), {"context_tokens": 3})


def test_bundled_autoencoder_is_left_out(tmp_path: Path) -> None:
    tensors = official(SMALL) | {"vae.latent_tokens": torch.ones(2, 2)}
    assert load_ar_diffusion(write(tmp_path, tensors)).config == SMALL


def test_missing_and_unknown_names_with_the_nearest(tmp_path: Path) -> None:
    tensors = official(SMALL)
    tensors[f"{PREFIX}blocks.1.attn.qvk.weight"] = tensors.pop(f"{PREFIX}blocks.1.attn.qkv.weight")
    with pytest.raises(CheckpointError, match="1 missing, 1 unknown") as caught:
        load_ar_diffusion(write(tmp_path, tensors))
    assert "missing: blocks.1.attn.qkv.weight (nearest: blocks.1.attn.qvk.weight)" in str(caught.value)
    assert "unknown: blocks.1.attn.qvk.weight (nearest: blocks.1.attn.qkv.weight)" in str(caught.value)


def test_wrong_shape(tmp_path: Path) -> None:
    tensors = official(SMALL) | {f"{PREFIX}blocks.1.mlp.fc2.bias": torch.ones(33)}
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.fc2.bias: \[33\], needs \[32\]"):
        load_ar_diffusion(write(tmp_path, tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path: Path, value: float) -> None:
    tensors = official(SMALL)
    tensors[f"{PREFIX}blocks.0.attn.proj.weight"][3, 4] = value
    with pytest.raises(CheckpointError, match="blocks.0.attn.proj.weight"):
        load_ar_diffusion(write(tmp_path, tensors))


def test_missing_block(tmp_path: Path) -> None:
    tensors = {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in official(SMALL).items()}
    with pytest.raises(CheckpointError, match="blocks"):
        load_ar_diffusion(write(tmp_path, tensors))


def test_duplicate_meaning(tmp_path: Path) -> None:
    tensors = official(SMALL) | {"x_embedder.bias": torch.ones(32)}
    with pytest.raises(CheckpointError, match="twice"):
        load_ar_diffusion(write(tmp_path, tensors))


def test_neither_kind_of_positions(tmp_path: Path) -> None:
    tensors = official(SMALL)
    del tensors[f"{PREFIX}pos_embed"]
    with pytest.raises(CheckpointError, match="neither pos_embed nor q_norm"):
        load_ar_diffusion(write(tmp_path, tensors))


def test_another_kind_of_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x_embedder.weight"):
        load_ar_diffusion(write(tmp_path, {"encoder.weight": torch.ones(2)}))


def test_settings_replace_defaults_and_must_not_contradict(tmp_path: Path) -> None:
    path = write(tmp_path, official(SMALL))
    changed = load_ar_diffusion(
        path, {"num_frames": 8, "heads": 2, "mask": "temporal_causal", "merge": "separate_norm"}
    ).config
    assert (changed.num_frames, changed.tokens_per_frame, changed.heads) == (8, 4, 2)
    assert (changed.mask, changed.merge) == ("temporal_causal", "separate_norm")
    with pytest.raises(ConfigError, match="depth"):
        load_ar_diffusion(path, {"depth": 3})
    with pytest.raises(ConfigError, match="a product of 32"):
        load_ar_diffusion(path, {"num_frames": 5})
    with pytest.raises(ConfigError, match="num_frames"):
        load_ar_diffusion(path, {"num_frame": 8})


def test_full_config_is_used_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, official(SMALL))
    config = dataclasses.replace(SMALL, heads=8, mask="temporal_causal")
    assert load_ar_diffusion(path, config).config == config
    with pytest.raises(CheckpointError, match="x_embedder.weight"):
        load_ar_diffusion(path, dataclasses.replace(SMALL, width=64))


def test_heads_must_be_given_where_sixteen_do_not_divide(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, width=24, heads=4)
    path = write(tmp_path, official(config))
    with pytest.raises(ConfigError, match="heads"):
        load_ar_diffusion(path)
    assert load_ar_diffusion(path, {"heads": 4}).config == config


@pytest.mark.parametrize("hidden", range(1, 200, 7))
def test_mlp_width_survives_the_ratio(hidden: int) -> None:
    config = dataclasses.replace(SMALL, width=28, heads=2, mlp_ratio=1.0)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in build_empty(ARDiffusionTransformer, config).state_dict().items()
    }
    shapes["blocks.0.mlp.fc1.weight"] = (hidden, 28)
    names = OfficialNames.read(shapes, "test")
    assert read_config(names, shapes, {"heads": 2}, "test").mlp_width == hidden


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(official(SMALL), tmp_path / "model.pt")
    with pytest.raises(UnsafeCheckpointError, match="ardiff convert"):
        load_ar_diffusion(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("src.ardiff.modules.dit_model.DiT_crossattn", "ar_diffusion"),
        ("src.gen_model.modules.dit_model.DiT_crossattn", "ar_diffusion"),
        ("src.vae_model.titok_kl.TiTok_KL", "titok"),
        ("src.vae.titok_kl_wt.TiTok_KL_wT", "titok_temporal"),
    ],
)
def test_target_names(name: str, kind: str) -> None:
    assert target_kind(name) == kind


def test_unknown_targets() -> None:
    assert canonical_target("src.gen_model.base.BaseModel") == "src.ardiff.base.BaseModel"
    assert canonical_target("other.Thing") == "other.Thing"
    with pytest.raises(ConfigError, match="Did you mean 'src.vae.titok_kl.TiTok_KL'"):
        target_kind("src.vae.titok_kl.TiTokKL")
