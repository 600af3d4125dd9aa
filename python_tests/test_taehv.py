# SPDX-License-Identifier: Apache-2.0
"""The light autoencoder: official numbers, and pieces of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import generate_weights
from safetensors.torch import save_file

from ardiff_engine.codec import TAEHV
from ardiff_engine.errors import CheckpointError, TensorError

GOLDEN = np.load(Path(__file__).parent / "golden" / "wan" / "taehv.npz")


@pytest.fixture(scope="module")
def model() -> TAEHV:
    model = TAEHV()
    generate_weights(model)
    return model


def error(got: torch.Tensor, want: np.ndarray) -> float:
    return float((got - torch.from_numpy(want)).norm() / np.linalg.norm(want))


def test_official_numbers(model: TAEHV) -> None:
    assert sorted(model.state_dict()) == sorted(map(str, GOLDEN["keys"]))
    decoded = model.decode(torch.from_numpy(GOLDEN["z"]).transpose(1, 2)).transpose(1, 2)
    assert error(decoded, GOLDEN["decoded"][:, 3:]) <= 1e-5
    encoded = model.encode(torch.from_numpy(GOLDEN["pixels"]).transpose(1, 2)).transpose(1, 2)
    assert error(encoded, GOLDEN["encoded"]) <= 1e-5


@pytest.mark.parametrize("splits", [(1,) * 6, (2, 4), (5, 1)])
def test_pieces_of_any_length_give_the_same_bits(model: TAEHV, splits: tuple[int, ...]) -> None:
    z = torch.from_numpy(GOLDEN["z"])[0]
    whole = model.decode(z.transpose(0, 1)[None])[0].transpose(0, 1)
    decoder = model.decoder()
    pieces = [decoder.push(piece) for piece in z.split(splits)]
    assert len(pieces[0]) == 4 * splits[0] - 3 and torch.equal(torch.cat(pieces), whole)
    assert decoder.nbytes == model.bytes_per_stream((2, 3))


def test_a_decoder_goes_on_after_latents_that_it_is_given(model: TAEHV) -> None:
    z = torch.randn(12, 16, 1, 2, generator=torch.Generator().manual_seed(3))
    whole = model.decode(z.transpose(0, 1)[None])[0].transpose(0, 1)
    for start in (1, 11):
        frames = model.decoder(z[model.history(start) : start]).push(z[start:])
        assert torch.equal(frames, whole[4 * start - 3 :])
    # One latent fewer than said is one too few.
    assert not torch.equal(model.decoder(z[model.history(start) + 1 : start]).push(z[start:]), frames)


def test_encoding_in_pieces(model: TAEHV) -> None:
    pixels = torch.rand(12, 3, 16, 8, generator=torch.Generator().manual_seed(4))
    whole = model.encode(pixels.transpose(0, 1)[None])[0].transpose(0, 1)
    encoder = model.video_encoder()
    assert torch.equal(torch.cat([encoder.push(piece) for piece in pixels.split((1, 6, 2, 3))]), whole)


def test_files(model: TAEHV, tmp_path: Path) -> None:
    path, state = tmp_path / "taew.safetensors", model.state_dict()
    save_file(state, path)
    loaded = TAEHV.from_file(path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
    save_file({name: value for name, value in state.items() if name != "decoder.22.bias"}, path)
    with pytest.raises(CheckpointError, match=r"decoder\.22\.bias"):
        TAEHV.from_file(path)


def test_inputs_that_do_not_fit(model: TAEHV) -> None:
    for shape in [(1, 3, 5, 16, 16), (1, 4, 4, 16, 16), (3, 4, 16, 16)]:
        with pytest.raises(TensorError):
            model.encode(torch.zeros(shape))
    for shape in [(1, 15, 2, 2, 2), (1, 16, 0, 2, 2)]:
        with pytest.raises(TensorError):
            model.decode(torch.zeros(shape))
    with pytest.raises(TensorError):
        model.decoder().push(torch.zeros(16, 2, 2))
