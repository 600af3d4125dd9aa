# SPDX-License-Identifier: Apache-2.0
"""Memory that is foretold, or promised, against the peak of a process that does just that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from effort import ALL
from helpers.peak_memory import alone, counted, peak_of
from safetensors.torch import save_file

from ardiff_engine.codec import TAEHV, WanVAE
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.pipeline.pixels import Pixels
from ardiff_engine.weights import convert, load_wan

# Latents. The second ones only with ARDIFF_TESTS=all.
SIZES = {"wan 2.1": [(16, 24), (13, 37)], "wan 2.2": [(9, 16), (12, 7)], "taehv": [(16, 24), (13, 37)]}
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def codec(name: str) -> WanVAE | TAEHV:
    """As deep as published; narrower, but wide enough that pictures are small beside the feature maps."""
    if name == "taehv":
        return TAEHV()
    if name == "wan 2.1":
        return WanVAE(32)
    return WanVAE(16, 48, mean=[0.0] * 48, std=[1.0] * 48, residual=True, decoder_width=48)


def decoding_peaks(sizes: dict[str, list[tuple[int, int]]]) -> dict[str, float]:
    """Measured bytes by foretold ones, of three latents: with the third one all of the state is there, and is
    replaced."""
    shares = {}
    for name, places in sizes.items():
        vae = codec(name)
        pixels = Pixels(vae)
        for size in [(2, 2), *places]:  # the first one for libraries and threads
            latents = torch.randn(3, 1, vae.channels, *size)

            def decode(pixels: Pixels = pixels, latents: torch.Tensor = latents) -> object:
                decoder = pixels.decoder()
                return decoder, [decoder.push(latent) for latent in latents]

            shares[f"{name} {size}"] = peak_of(decode) / sum(pixels.memory(size))
        del shares[f"{name} (2, 2)"]
    return shares


@counted
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="another library convolves here")
def test_decoding_takes_what_was_foretold() -> None:
    sizes = SIZES if ALL else {name: own[:1] for name, own in SIZES.items()}
    shares = alone(decoding_peaks, sizes)
    assert len(shares) == sum(map(len, sizes.values()))
    assert all(0.85 < share < 1.15 for share in shares.values()), shares


def loading_peaks(places: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """(weights, peak) in bytes, of each folder: with the dtype of its file, and as float32."""
    settings, found = {"text_tokens": 8}, []
    for place, stored in places:
        for dtype in (HALF[stored], torch.float32):

            def load(place: str = place, dtype: torch.dtype = dtype) -> WanTransformer:
                return load_wan(place, settings, dtype=dtype)

            weights = sum(own.nbytes for own in load().parameters())
            found.append((weights, peak_of(load)))
    return found


@counted
def test_loading_takes_the_weights_and_one_tensor(tmp_path: Path) -> None:
    """Files of 16 bits, kept and cast: a single one, shards, and a `.pt` after `ardiff convert`."""
    network = WanTransformer(WanConfig(256, 6, 2, 2048, text_dim=64, text_tokens=8))
    places = []
    for stored, dtype in HALF.items():
        state = network.to(dtype).state_dict()
        single, shards, pickled = (tmp_path / stored / name for name in ("single", "shards", "pickled"))
        for place in (single, shards, pickled):
            place.mkdir(parents=True)
            places.append((str(place), stored))
        save_file(state, single / "model.safetensors")
        halves = {f"model-{n}-of-2.safetensors": list(state)[n::2] for n in (0, 1)}
        for file, names in halves.items():
            save_file({name: state[name] for name in names}, shards / file)
        index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
        (shards / "model.safetensors.index.json").write_text(json.dumps(index))
        torch.save({"generator": {f"model.{name}": own for name, own in state.items()}}, pickled / "x.pt")
        convert(pickled / "x.pt", pickled / "model.safetensors")
    largest = max(own.numel() for own in network.parameters()) * (2 + 4)
    for weights, peak in alone(loading_peaks, places):
        assert weights > 4 * largest
        assert 0.95 * weights < peak < 1.05 * weights + largest
