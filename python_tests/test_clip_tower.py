# SPDX-License-Identifier: Apache-2.0
"""CLIP's vision tower from the official file of Wan 2.1: transformers' numbers, and diffusers' video."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import wan_folder
from PIL import Image
from safetensors.torch import load_file, save_file

import ardiff_engine as ade
from ardiff_engine.conditions import CLIPTower
from ardiff_engine.errors import CheckpointError, ConfigError, UnsafeCheckpointError
from ardiff_engine.pipeline.image_encoder import OFFICIAL
from ardiff_engine.pipeline.memory import video_memory
from ardiff_engine.pipeline.parts import find_parts
from ardiff_engine.weights import convert

WIDTH, PATCH, LAYERS = 160, 2, 3
SIZE = (32, 48)


def theirs():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(3)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "image_size": 32}
    return CLIPVisionModel(
        CLIPVisionConfig(**sizes, num_attention_heads=2, patch_size=PATCH, hidden_act="gelu")
    ).eval()


def official(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its weights under the official names, with some of the text side."""
    held = {name.removeprefix("vision_model."): own for name, own in model.state_dict().items()}
    named = {
        "cls_embedding": held["embeddings.class_embedding"][None, None],
        "patch_embedding.weight": held["embeddings.patch_embedding.weight"],
        "pos_embedding": held["embeddings.position_embedding.weight"][None],
        "head": torch.randn(WIDTH, 12),
    }
    outer = {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm"}
    inner = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    inner["attn.proj"] = "self_attn.out_proj"
    for end in ("weight", "bias"):
        named |= {f"{own}.{end}": held[f"{name}.{end}"] for own, name in outer.items()}
        for layer in range(LAYERS):
            to, of = f"transformer.{layer}", f"encoder.layers.{layer}"
            named |= {f"{to}.{own}.{end}": held[f"{of}.{name}.{end}"] for own, name in inner.items()}
            qkv = [held[f"{of}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            named[f"{to}.attn.to_qkv.{end}"] = torch.cat(qkv)
    stored = {f"visual.{name}": own.clone().contiguous() for name, own in named.items()}
    return stored | {"log_scale": torch.tensor(1.0), "textual.head.0.weight": torch.randn(4, 4)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.save(official(theirs()), folder / f"{OFFICIAL}.pth")
    return convert(folder / f"{OFFICIAL}.pth", folder / f"{OFFICIAL}.safetensors").path


@torch.no_grad()
def test_transformers_numbers(file: Path) -> None:
    tower, model = CLIPTower.from_file(file), theirs()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = model(pixels, output_hidden_states=True).hidden_states[-2]
    got = tower.hidden(pixels)
    assert float((got - want).norm() / want.norm()) <= 1e-6
    assert tower.tokens(torch.zeros(20, 30, 3, dtype=torch.uint8)).shape == (257, WIDTH)
    assert CLIPTower.from_file(file, dtype=torch.bfloat16).hidden(pixels.bfloat16()).dtype == torch.bfloat16


def test_a_folder_with_the_official_file(file: Path, tmp_path: Path) -> None:
    transformer = wan_folder.transformer(in_channels=12, image_dim=WIDTH, added_kv_proj_dim=24)
    pipeline = wan_folder.image_pipeline(transformer)
    pipeline.save_pretrained(tmp_path)
    (tmp_path / f"{OFFICIAL}.pth").touch()
    with pytest.raises(UnsafeCheckpointError, match="convert"):
        ade.Pipeline.from_pretrained(tmp_path, system="wan")
    shutil.copy(file, tmp_path)
    ours = ade.Pipeline.from_pretrained(tmp_path, system="wan")
    options = {"negative_prompt": "dog", "guidance_scale": 3.0, "num_inference_steps": 4, "num_frames": 9}
    noise = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    picture = torch.randint(0, 256, (*SIZE, 3), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    got = ours(
        "a cat", image=picture, size=SIZE, latents=noise.transpose(1, 2), progress=False, **options
    ).latents
    seen = CLIPTower.from_file(file).tokens(picture)[None]
    pipeline.encode_image = lambda *_: seen  # its own way to the square is another one
    want = pipeline(
        Image.fromarray(picture.numpy()),
        "a cat",
        height=SIZE[0],
        width=SIZE[1],
        latents=noise.clone(),
        output_type="latent",
        **options,
    ).frames.transpose(1, 2)
    assert float((got - want).norm() / want.norm()) <= 1e-4

    parts = find_parts(tmp_path)
    assert parts.image is not None
    used = sum(weight.numel() for weight in CLIPTower.from_file(file).parameters())
    for dtype in (torch.float32, torch.bfloat16):
        told = video_memory(parts, ours.system, size=SIZE, frames=9, dtype=dtype)
        assert told.image == used * dtype.itemsize and told.running > told.image + told.engine.total_bytes


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lambda held: held.pop("visual.transformer.1.attn.proj.bias"), CheckpointError, "missing"),
        (lambda held: held.pop("visual.pos_embedding"), CheckpointError, "pos_embedding"),
        (lambda held: held.update({"visual.odd": torch.zeros(2)}), CheckpointError, "unknown"),
        (lambda held: held.update(widened(held)), ConfigError, "different models"),
    ],
)
def test_another_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm, error, says) -> None:
    transformer = wan_folder.transformer(in_channels=12, image_dim=WIDTH, added_kv_proj_dim=24)
    wan_folder.image_pipeline(transformer).save_pretrained(tmp_path)
    held = load_file(file)
    harm(held)
    save_file(held, tmp_path / f"{OFFICIAL}.safetensors")
    monkeypatch.setattr(
        "ardiff_engine.weights.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("read weights")
    )
    with pytest.raises(error, match=says):
        ade.Pipeline.from_pretrained(tmp_path, system="wan")


def widened(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of larger pictures."""
    return {"visual.pos_embedding": torch.zeros(1, 1 + 20**2, WIDTH)}
