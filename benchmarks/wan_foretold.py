# SPDX-License-Identifier: Apache-2.0
"""The memory column of docs/models.md: GiB for 1 and 8 streams, from files of the published sizes.

    python benchmarks/wan_foretold.py

The files have headers only, and holes in place of weights: what is foretold is read from headers.
"""

from __future__ import annotations

import json
import struct
import tempfile
from math import prod
from pathlib import Path

import torch

from ardiff_engine.codec import WanVAE
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.pipeline.memory import GIB, PartsMemory
from ardiff_engine.pipeline.parts import VideoParts, find_parts
from ardiff_engine.pipeline.systems import system_named

SIZES = {
    "1.3B": WanConfig(),
    "14B": WanConfig(5120, 40, 40, 13824),
    "5B": WanConfig(3072, 30, 24, 14336, 48, 48),
}
ROWS = [
    *[("1.3B", "wan"), ("14B", "wan"), ("1.3B", "skyreels-v2"), ("14B", "skyreels-v2")],
    *[("1.3B", "skyreels-v2-causal"), ("14B", "skyreels-v2-causal"), ("14B", "pusa")],
    *[("1.3B", name) for name in ("self-forcing", "self-forcing-framewise", "causvid", "causal-forcing")],
    *[("1.3B", name) for name in ("causal-forcing-framewise", "longlive", "diagonal-distillation")],
    *[("1.3B", name) for name in ("rolling-forcing", "hiar", "hiar-pipelined")],
    *[("14B", "krea-realtime"), ("5B", "longlive2")],
]
SHARD = 2 << 30
FRAMES, SIZE = 81, (480, 832)
OTHERS = {"longlive2": (93, (704, 1280)), "skyreels-v2-causal": (77, SIZE)}


def write_headers(file: Path, model: torch.nn.Module) -> None:
    """In shards, as a file is mapped whole for a moment where its header is checked."""
    shards: list[dict[str, object]] = [{}]
    ends = [0]
    for name, own in model.state_dict().items():
        if ends[-1] > SHARD:
            shards.append({})
            ends.append(0)
        start, ends[-1] = ends[-1], ends[-1] + 2 * prod(own.shape)
        shards[-1][name] = {"dtype": "BF16", "shape": list(own.shape), "data_offsets": [start, ends[-1]]}
    files = {}
    for number, (header, end) in enumerate(zip(shards, ends, strict=True)):
        shard = file if len(shards) == 1 else file.with_name(f"{number}.safetensors")
        text = json.dumps(header).encode()
        with open(shard, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
        files |= dict.fromkeys(header, shard.name)
    if len(shards) > 1:
        file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": files}))


def parts_of(config: WanConfig, folder: Path) -> VideoParts:
    large = {"residual": True, "mean": [0.0] * 48, "std": [1.0] * 48, "decoder_width": 256}
    with torch.device("meta"):
        vae = WanVAE() if config.channels == 16 else WanVAE(160, 48, **large)  # type: ignore[arg-type]
        transformer = WanTransformer(config)
    write_headers(folder / "vae.safetensors", vae)
    write_headers(folder / "diffusion_pytorch_model.safetensors", transformer)
    (folder / "config.json").write_text(json.dumps({"num_heads": config.heads}))
    return find_parts(folder, text=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        parts = {}
        for name, config in SIZES.items():
            (folder := Path(root, name)).mkdir()
            parts[name] = parts_of(config, folder)
        for model, name in ROWS:
            frames, size = OTHERS.get(name, (FRAMES, SIZE))
            foretold = PartsMemory(parts[model], size, torch.bfloat16)
            needed = [foretold.of(system_named(name), frames=frames, streams=n) for n in (1, 8)]
            one, eight = (own.running / GIB for own in needed)
            vae = (needed[0].codec + needed[0].decoders + needed[0].decoding) / GIB
            print(f"{model:>4} {name:<24} {one:6.1f} {eight:6.1f}  autoencoder {vae:.1f}")


if __name__ == "__main__":
    main()
