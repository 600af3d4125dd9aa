# SPDX-License-Identifier: Apache-2.0
"""The fault matrix at the decoder: eight streams of one engine, each read through a decoding thread."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from unittest import mock

import torch
from dense_oracle import randomise
from fault_beds import BEDS
from fault_cases import OUTCOMES, Case, check_engine, check_frames, reference

from ardiff_engine.codec import worker as decode_worker
from ardiff_engine.engine import Engine, Stream
from ardiff_engine.errors import ArdiffError, NumericalError
from ardiff_engine.models import TiTok, TiTokConfig
from ardiff_engine.models.titok.codec import TiTokCodec
from ardiff_engine.pipeline.decoding import stream_pictures
from ardiff_engine.pipeline.output import VideoFrame


@cache
def autoencoder() -> TiTok:
    made = TiTok(
        TiTokConfig(
            image_size=8,
            patch_size=4,
            encoder_width=16,
            encoder_layers=1,
            encoder_heads=2,
            decoder_width=16,
            decoder_layers=1,
            decoder_heads=2,
            num_latent_tokens=3,
            token_size=4,
            codebook_logits=8,
            quantized_channels=4,
            hidden_channels=4,
            channel_multipliers=(1, 1, 2),
            res_blocks=1,
            norm_groups=2,
        )
    )
    randomise(made)
    return made.eval()


class FaultyDecoder:
    """In place of the autoencoder's `decode`: strikes at its picture number `at`."""

    def __init__(self, kind: str, at: int, stream: Stream) -> None:
        self.struck = False
        self._kind, self._at, self._stream, self._seen = kind, at, stream, 0

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        images, self._seen = autoencoder().decode(latents), self._seen + 1
        if self._seen <= self._at:
            return images
        self.struck = True
        if self._kind == "exception":
            raise RuntimeError("an injected fault")
        if self._kind == "out of memory":
            raise MemoryError("an injected fault")
        if self._kind == "dead worker":
            raise SystemExit
        if self._kind == "cancel":
            self._stream.cancel()
        return images * torch.nan if self._kind == "nan" else images


@cache
def pictures(seed: int) -> list[list[torch.Tensor]]:
    """Of the run without a fault."""
    engine = BEDS["lags"].engine(reference("lags", seed).pages)
    streams = BEDS["lags"].submitted(engine, seed)
    codec = TiTokCodec(autoencoder(), engine.model.spec)
    readers = [stream_pictures(engine, stream, codec, None) for stream in streams]
    return [[frame.image for frame in reader] for reader in readers]


def run_decode(case: Case) -> None:
    bed, expected, chance = BEDS[case.bed], case.expected, case.chance
    engine = bed.engine(expected.pages)
    slow = case.kind == "slow reader"
    streams = []
    for number, request in enumerate(bed.requests(case.seed)):
        ahead = 2 if slow and number == case.victim else None
        streams.append(engine.submit(replace(request, max_ahead=ahead)))
    victim = streams[case.victim]
    decoder = FaultyDecoder(case.kind, chance.randrange(len(expected.frames[case.victim])), victim)
    faulty = copy.copy(autoencoder())
    faulty.decode = decoder  # type: ignore[method-assign]
    sound, broken = (TiTokCodec(vae, engine.model.spec) for vae in (autoencoder(), faulty))
    readers = [
        stream_pictures(engine, stream, broken if stream is victim else sound, None) for stream in streams
    ]
    unheard = case.kind == "dead worker" and chance.random() < 0.5
    found = _read(engine, readers, case, chance, unheard)

    error = found.errors.pop(case.victim, None)
    assert not found.errors, f"a stream that had no fault raised {found.errors}"
    if slow or case.kind == "cancel":
        assert error is None
    else:
        assert isinstance(error, NumericalError if case.kind == "nan" else ArdiffError), repr(error)
    assert slow or unheard or decoder.struck, "the fault never struck"
    for number, images in enumerate(found.images):
        whole = number != case.victim or slow
        check_frames(images, pictures(case.seed)[number], whole=whole, name=f"stream {number}")
    assert not [thread for thread in threading.enumerate() if thread.name == "ardiff-decode"]
    # The stream itself was sound: its reader has left it. It may have been finished by then.
    assert victim.state in ("finished", "cancelled")
    outcome = "is cancelled" if victim.state == "cancelled" else "goes on"
    assert outcome == "goes on" or OUTCOMES[case.kind] != "goes on"
    check_engine(case, engine, outcome)


class _Found:
    def __init__(self, streams: int) -> None:
        self.images: list[list[torch.Tensor]] = [[] for _ in range(streams)]
        self.errors: dict[int, ArdiffError] = {}


def _read(
    engine: Engine, readers: list[Iterator[VideoFrame]], case: Case, chance: random.Random, unheard: bool
) -> _Found:
    """Frame by frame, in turn. A slow reader takes one frame and comes back when the others are done."""
    found, going = _Found(len(readers)), dict(enumerate(readers))

    def read(number: int) -> None:
        try:
            found.images[number].append(next(going[number]).image)
        except StopIteration:
            del going[number]
        except ArdiffError as error:
            found.errors[number] = error
            assert next(going.pop(number), None) is None, "an error comes once, then nothing"

    if unheard:
        # As after a fork: the thread is gone, and nobody says so.
        with mock.patch.object(decode_worker._Work, "_run", lambda self: None):
            read(case.victim)
    if case.kind == "slow reader":
        read(case.victim)
        late = going.pop(case.victim, None)
        while going:
            for number in list(going):
                read(number)
        if late is not None:
            going[case.victim] = late
    while going:
        for number in chance.sample(sorted(going), len(going)):
            read(number)
    return found
