# SPDX-License-Identifier: Apache-2.0
"""Decoding in a process of its own: the same pictures, forks and ways back; its faults and its death."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import server as _needs  # noqa: F401  the extra serve
from helpers.processes import started
from helpers.waiting import PATIENCE
from PIL import Image

import ardiff_engine as ade
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.errors import ArdiffError
from ardiff_engine.media import read_video
from ardiff_engine.serve.film import Form, Piece
from ardiff_engine.serve.stage import Stage, _Sent

PNG = Form("png", 8.0, 1)


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return ade.Pipeline.from_pretrained(tiny_model).codec


@pytest.fixture(scope="module")
def latents(tiny_model: Path) -> torch.Tensor:
    shape = ade.Pipeline.from_pretrained(tiny_model).transformer.spec.frame_shape(None)
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def stage(codec: Codec) -> Iterator[Stage]:
    with contextlib.closing(Stage(codec)) as found:
        yield found


def pictures(codec: Codec, latents: torch.Tensor) -> list[np.ndarray]:
    """Decoded here, frame by frame."""
    decoder = codec.decoder()
    return [decoder.push(latent[None])[0].numpy() for latent in latents]


def shown(piece: Piece) -> np.ndarray:
    ((count, data),) = piece.messages
    assert count == 1
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def test_pictures_forks_and_ways_back(stage: Stage, codec: Codec, latents: torch.Tensor) -> None:
    expected = pictures(codec, latents)
    stage.open("a", PNG)
    pieces = [stage.push("a", n, latents[n], None) for n in range(4)]
    for n, piece in enumerate(pieces):
        assert piece.result().first == n
        np.testing.assert_array_equal(shown(piece.result()), expected[n])
    stage.fork("a", "b").result()
    assert stage.push("b", 4, latents[4], None, shown=False).result().messages == []
    np.testing.assert_array_equal(shown(stage.push("b", 5, latents[5], None).result()), expected[5])
    stage.rollback("a", 2).result()
    again = stage.push("a", 2, latents[2], None).result()
    assert again.first == 2
    np.testing.assert_array_equal(shown(again), expected[2])
    for name in ("a", "b"):
        assert stage.finish(name).result() == b""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_latent_is_sent_as_its_bytes(dtype: torch.dtype) -> None:
    """Of any layout; and in far fewer than an archive of PyTorch's has."""
    latent = torch.randn(4, 8, 3).to(dtype).movedim(0, 2)
    sent = pickle.dumps(_Sent(latent), protocol=5)
    got = pickle.loads(sent)
    assert got.dtype == dtype and torch.equal(got, latent)
    assert len(sent) < latent.nbytes + 400


def test_a_file(stage: Stage, codec: Codec, latents: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    stage.open("file", Form("mp4", 8.0, 2, path))
    assert not path.exists(), "a film that waits for its first frame has no file"
    for n, latent in enumerate(latents):
        assert stage.push("file", n, latent, None).result().messages == [(1, b"")]
    stage.finish("file").result()
    film = read_video(path)
    side = pictures(codec, latents)[0].shape[0]
    assert film.shape == (6, 2 * side, 2 * side, 3)


def test_a_fault_stays_with_its_film(stage: Stage, codec: Codec, latents: torch.Tensor) -> None:
    for name in ("good", "bad"):
        stage.open(name, PNG)
    with pytest.raises(ArdiffError):
        stage.push("bad", 0, latents[0, ..., :1], None).result()
    np.testing.assert_array_equal(
        shown(stage.push("good", 0, latents[0], None).result()), pictures(codec, latents)[0]
    )
    for name in ("good", "bad", "never there"):
        stage.drop(name).result()


def test_when_the_process_dies_its_films_fail_and_new_ones_do_not(
    codec: Codec, latents: torch.Tensor
) -> None:
    before = set(multiprocessing.active_children())
    with contextlib.closing(Stage(codec)) as own:
        own.open("a", PNG).result()
        (child,) = set(multiprocessing.active_children()) - before
        child.kill()
        child.join()
        with pytest.raises(ArdiffError):
            own.push("a", 0, latents[0], None).result()
        with pytest.raises(ArdiffError):
            own.push("a", 1, latents[1], None).result()
        own.open("b", PNG).result()
        np.testing.assert_array_equal(
            shown(own.push("b", 0, latents[0], None).result()), pictures(codec, latents)[0]
        )
    assert set(multiprocessing.active_children()) == before


class Endless:
    """A codec at which the process that decodes stays."""

    def decoder(self, *_: object) -> None:
        print("begun", flush=True)
        threading.Event().wait(2 * PATIENCE)


def decode_endlessly() -> None:
    stage = Stage(Endless())  # type: ignore[arg-type]
    stage.open("a", PNG)
    stage.push("a", 0, torch.zeros(1, 1), None).result()


def left_open(folder: str) -> None:
    stage = Stage(ade.Pipeline.from_pretrained(folder).codec)
    stage.open("a", PNG).result()


def test_a_program_ends_without_closing_it(tiny_model: Path) -> None:
    here = Path(__file__)
    command = [sys.executable, "-c", f"import {here.stem} as here; here.left_open({str(tiny_model)!r})"]
    with started(command, cwd=here.parent) as process:
        assert process.wait(PATIENCE) == 0


def test_it_ends_with_a_server_that_is_killed_also_in_the_middle_of_a_frame() -> None:
    """Both write to one pipe, which is at its end when neither lives."""
    here = Path(__file__)
    command = [sys.executable, "-c", f"import {here.stem} as here; here.decode_endlessly()"]
    with started(command, cwd=here.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.kill()
        assert process.communicate(timeout=PATIENCE) == ("", None)
