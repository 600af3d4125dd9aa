# SPDX-License-Identifier: Apache-2.0
"""umT5's encoder in files: as `transformers` name its weights, or as Wan's official release does."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ardiff_engine import arguments
from ardiff_engine.conditions.pretrained import transformers_class
from ardiff_engine.errors import CheckpointError
from ardiff_engine.parsing import parsing, read_json
from ardiff_engine.weights.fit import block_count, fill, shape_of
from ardiff_engine.weights.safetensors_file import SafetensorsFile, unsafe

OFFICIAL = "models_t5_umt5-xxl-enc-bf16"
TOKENIZERS = ("tokenizer", "google/umt5-xxl")
"""Where diffusers and the official release keep it."""
EMBEDDING = "embed_tokens.weight"

_NAMES = (
    (r"^(shared|encoder\.embed_tokens|token_embedding)\.", "embed_tokens."),
    (r"^norm\.", "final_layer_norm."),
    (r"^encoder\.", ""),
    (r"^blocks\.(\d+)\.attn\.", r"block.\1.layer.0.SelfAttention."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm1\.", r"block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"block.\1.layer.1.DenseReluDense.wo."),
)


@dataclass(frozen=True, slots=True)
class UMT5File:
    """names: of `transformers`' encoder -> name in the file; shapes: theirs. settings: of its config.
    tokenizer: a folder."""

    file: SafetensorsFile
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]
    tokenizer: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> UMT5File:
        """From headers alone: a folder with text_encoder/ and tokenizer/, one that holds both directly, the
        official file, or a folder with it; then the tokenizer is in google/umt5-xxl/ beside it.

        UnsafeCheckpointError: the official file before `ardiff convert`. CheckpointError: none of it.
        """
        place = arguments.path("folder", path)
        root = place.parent if place.is_file() else place
        file = SafetensorsFile(_encoder_in(place))
        names = {_name(stored): stored for stored in file.shapes}
        shapes = {name: file.shapes[stored] for name, stored in names.items()}
        config = file.path.parent / "config.json"
        # Of official files, config.json beside them is the transformer's.
        own = not any(stored.startswith("blocks.") for stored in file.shapes) and config.is_file()
        settings = {**_sizes(shapes, str(file.path)), **(_read(config) if own else {})}
        tokenizer = next((root / name for name in TOKENIZERS if (root / name).is_dir()), root)
        return cls(file, names, shapes, settings, tokenizer)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.shapes[EMBEDDING][1]

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The encoder of `transformers` with its weights. CheckpointError: names or shapes that do not fit
        it, before any is read; NaN. ConfigError: transformers is missing."""
        config, model = transformers_class("UMT5Config"), transformers_class("UMT5EncoderModel")
        with parsing(f"text encoder in {self.file.path}"), torch.device("meta"):
            # Without what is around it: that has the embedding a second time, under another name.
            encoder = model(config(**self.settings)).encoder
        fill(encoder, self.file, self.names, shapes=self.shapes, device=device, dtype=dtype)
        return encoder.requires_grad_(False).eval()


def holds_umt5(place: Path) -> bool:
    """Whether there is anything that `UMT5File.open` might open."""
    folder = place.parent if place.is_file() else place
    inside = (folder / "text_encoder").is_dir(), (folder / f"{OFFICIAL}.safetensors").is_file()
    return any(inside) or (folder / f"{OFFICIAL}.pth").is_file()


def _encoder_in(place: Path) -> Path:
    official = place / f"{OFFICIAL}.safetensors"
    if (place / "text_encoder").is_dir():
        return place / "text_encoder"
    if official.is_file():
        return official
    if official.with_suffix(".pth").is_file():
        raise unsafe(official.with_suffix(".pth"))
    return place


def _name(stored: str) -> str:
    for pattern, name in _NAMES:
        stored = re.sub(pattern, name, stored)
    return stored


def _sizes(shapes: dict[str, tuple[int, ...]], origin: str) -> dict[str, Any]:
    """What shapes show; the rest of a config is umT5's own."""
    attention = "block.0.layer.0.SelfAttention"
    vocabulary, width = shape_of(shapes, EMBEDDING, 2, origin)
    buckets, heads = shape_of(shapes, f"{attention}.relative_attention_bias.weight", 2, origin)
    inner = shape_of(shapes, f"{attention}.q.weight", 2, origin)[0]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": shape_of(shapes, "block.0.layer.1.DenseReluDense.wo.weight", 2, origin)[1],
        "num_layers": block_count(shapes, "block.", origin),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "dropout_rate": 0.0,
    }


def _read(config: Path) -> dict[str, Any]:
    values = read_json(config)
    if not isinstance(values, dict):
        raise CheckpointError(f"{config} is no config of transformers.")
    return values
