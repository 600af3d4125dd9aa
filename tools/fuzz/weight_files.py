# SPDX-License-Identifier: Apache-2.0
"""Hostile safetensors files, model folders, shards with their index, and LoRA files."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer, TiTok, TiTokConfig
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.weights import load_ar_diffusion, load_model, load_titok, save_model
from ardiff_engine.weights.load_wan import load_wan
from ardiff_engine.weights.lora import load_lora
from ardiff_engine.weights.safetensors_file import SafetensorsFile
from tools.fuzz.mutate import mutated
from tools.fuzz.plain_values import changed, json_text
from tools.fuzz.runner import Kind
from tools.fuzz.traps import Traps

SMALL = ARDiffusionConfig(
    num_frames=2, tokens_per_frame=2, channels=4, width=16, depth=2, heads=2, context_tokens=2, context_dim=8
)
SMALL_TITOK = TiTokConfig(
    **{"image_size": 16, "patch_size": 8, "channel_multipliers": (1, 1, 1, 1), "hidden_channels": 4},
    **{
        "encoder_width": 16,
        "encoder_layers": 1,
        "encoder_heads": 2,
        "decoder_width": 16,
        "decoder_layers": 1,
    },
    **{"decoder_heads": 2, "num_latent_tokens": 2, "token_size": 4, "codebook_logits": 8, "norm_groups": 2},
    **{"quantized_channels": 4, "res_blocks": 1},
)
SMALL_WAN = WanConfig(
    width=24,
    depth=2,
    heads=2,
    mlp_width=16,
    channels=4,
    out_channels=4,
    text_dim=8,
    text_tokens=4,
    frequency_dim=8,
)


@dataclasses.dataclass(frozen=True)
class SmallModel:
    config: Any
    make: Callable[[Any], torch.nn.Module]
    load: Callable[[Path], object]


SMALL_MODELS = {
    "ar": SmallModel(SMALL, ARDiffusionTransformer, load_ar_diffusion),
    "titok": SmallModel(SMALL_TITOK, TiTok, load_titok),
}


@functools.cache
def good_folder(kind: str) -> Path:
    """A model folder, written once per process."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-good-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    small = SMALL_MODELS[kind]
    save_model(small.make(small.config), folder)
    return folder


def weights(kind: str, rng: random.Random, folder: Path, traps: Traps) -> Path:
    """A safetensors file with changed bytes, a changed header, or a header that claims much."""
    data = (good_folder(kind) / "model.safetensors").read_bytes()
    path = folder / "given.safetensors"
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = rng.randrange(8)
    if how < 2:
        path.write_bytes(mutated(data, rng))
        return path
    if how == 2:
        claim = rng.choice((0, 1, length - 1, length + 1, 200 << 20, 2**31, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", claim) + data[8:])
        return path
    if how == 3:
        text = json_text(header, rng)
    elif how == 4:
        text = json.dumps(_many(header, rng)).encode()
    elif how == 5:
        described = json.loads(header["__metadata__"]["ardiff"])
        header["__metadata__"] = {"ardiff": json_text(described, rng).decode("utf-8", "replace")}
        text = json.dumps(header).encode()
    else:
        text = json.dumps(_changed_header(header, len(body), rng)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def _changed_header(header: dict[str, Any], size: int, rng: random.Random) -> dict[str, Any]:
    """Some tensors with other shapes, dtypes, offsets or names."""
    for name in rng.sample([name for name in header if name != "__metadata__"], rng.choice((1, 2, 5))):
        entry, how = header[name], rng.randrange(6)
        if how == 0:
            entry["data_offsets"] = rng.choice(
                ([0, size], [size, 0], [0, 2**63], [0, 0], [4, 8], [-1, 4], [1])
            )
        elif how == 1:
            entry["shape"] = rng.choice(
                ([0], [], [2**62, 4], [2**32, 2**32], [-1], [1] * 5000, [[1]], "x", [1.5])
            )
        elif how == 2:
            entry["dtype"] = rng.choice(
                ("F64", "I64", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "X", "", "C64", None, 3)
            )
        elif how == 3:
            header[rng.choice((name + "x", "", "x" * 5000, "blocks.99.x", "\0"))] = header.pop(name)
        elif how == 4:
            del header[name]
        else:
            header[f"blocks.{rng.choice((7, 10**9, -1))}.attn.qkv.weight"] = dict(entry)
    return changed(header, rng) if rng.random() < 0.2 else header


def _many(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return header | {f"blocks.{n}.x": entry for n in range(rng.choice((1000, 12_000, 100_000)))}


def read_weights(load: Callable[[Path], object], path: Path) -> None:
    file = SafetensorsFile(path)
    for name in file.shapes:
        file.read(name, torch.device("cpu"), torch.float32)
    load(path)


def model_folder(kind: str, rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / "model"
    shutil.copytree(good_folder(kind), path)
    described = json.loads((path / "config.json").read_text())
    how = rng.randrange(6)
    if how == 0:
        (path / "config.json").unlink()
        # A link to a file is followed: caches of models consist of them.
        if rng.random() < 0.5:
            (path / "config.json").symlink_to(rng.choice(("/dev/zero", "none", "config.json")))
        else:
            (path / "config.json").mkdir()
        return path
    if how == 1:
        # Sizes that fit each other, and are far too large for the weights.
        described |= rng.choice(({"depth": 10**6}, {"depth": 1000}, {"width": 2**20}, {"num_classes": 2**23}))
        text = json.dumps(described).encode()
        data = (path / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"]["ardiff"] = text.decode()
        new = json.dumps(header).encode()
        (path / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])
    else:
        text = json_text(described, rng)
    (path / "config.json").write_bytes(text)
    return path


HINTS = {"num_heads": 2, "text_len": 4, "eps": 1e-6, "dim": 24, "model_type": "t2v", "patch_size": [1, 2, 2]}


def official_folder(rng: random.Random, folder: Path, traps: Traps) -> Path:
    """Wan's weights without our header, whole or in shards with an index, beside an official config.json."""
    path = folder / "wan"
    path.mkdir()
    tensors = dict(torch.nn.Module.state_dict(WanTransformer(SMALL_WAN)))
    (path / "config.json").write_bytes(
        json.dumps(HINTS).encode() if rng.random() < 0.5 else json_text(HINTS, rng)
    )
    if rng.random() < 0.4:
        whole = path / "model.safetensors"
        save_file(tensors, whole)
        data = whole.read_bytes()
        length = int.from_bytes(data[:8], "little")
        body = data[8 + length :]
        text = json.dumps(_changed_header(json.loads(data[8 : 8 + length]), len(body), rng)).encode()
        whole.write_bytes(struct.pack("<Q", len(text)) + text + body if rng.random() < 0.7 else data)
        return path
    names = sorted(tensors)
    shards = {f"model-{part}.safetensors": names[part::3] for part in range(3)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    how = rng.randrange(5)
    if how == 0:
        victim = rng.choice(sorted(shards))
        (path / victim).write_bytes(mutated((path / victim).read_bytes(), rng))
    elif how == 1:
        canary = os.path.relpath(traps.files[-1], path)
        weight_map[rng.choice(names)] = rng.choice(
            (canary, str(traps.files[-1]), "none.safetensors", "", ".", "\0")
        )
    elif how == 2:
        weight_map[rng.choice(names)] = rng.choice(sorted(shards))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    text = json.dumps(index).encode() if how < 3 else json_text(index, rng)
    (path / "model.safetensors.index.json").write_bytes(text)
    return path


def lora(rng: random.Random, folder: Path, traps: Traps) -> Path:
    """A LoRA of Wan with odd shapes, names, alphas and values, or changed bytes."""
    tensors: dict[str, torch.Tensor] = {}
    for name in rng.sample(("q", "k", "v", "o"), rng.randrange(1, 4)):
        front = rng.choice(("diffusion_model.", "base_model.model.", "", "x."))
        front += f"blocks.{rng.randrange(3)}.self_attn.{name}"
        rank = rng.choice((1, 2, 4, 1000))
        value = rng.choice((0.1, 0.1, float("nan"), 1e38))
        tensors[f"{front}.lora_A.weight"] = torch.full((rank, rng.choice((24, 24, 24, 7))), value)
        tensors[f"{front}.lora_B.weight"] = torch.full((24, rng.choice((rank, rank, 3))), 0.1)
        tensors[f"{front}.alpha"] = rng.choice((torch.tensor(2.0), torch.tensor(float("inf")), torch.ones(3)))
        tensors[f"{front}.{rng.choice(('diff', 'diff_b', 'dora_scale', 'x'))}"] = torch.ones(
            rng.choice((1, 24))
        )
        if rng.random() < 0.5:
            extra = ("alpha", "diff", "x", "scale")
            tensors = {key: part for key, part in tensors.items() if not key.endswith(extra)}
    path = folder / "lora.safetensors"
    save_file(tensors, path)
    (folder / "adapter_config.json").write_bytes(json_text({"lora_alpha": 4, "r": 2}, rng))
    if rng.random() < 0.3:
        path.write_bytes(mutated(path.read_bytes(), rng))
    return path


def read_lora(path: Path) -> None:
    load_lora(WanTransformer(SMALL_WAN), path)


KINDS = [
    *(
        Kind(f"weights-{name}", functools.partial(weights, name), functools.partial(read_weights, small.load))
        for name, small in SMALL_MODELS.items()
    ),
    *(Kind(f"model-{name}", functools.partial(model_folder, name), load_model) for name in SMALL_MODELS),
    Kind("wan-official", official_folder, load_wan),
    Kind("lora", lora, read_lora, names_file=False),  # it may be the file beside it
]
