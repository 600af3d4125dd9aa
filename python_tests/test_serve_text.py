# SPDX-License-Identifier: Apache-2.0
"""A text-to-video model behind the server: lengths, sizes, prompts; frames as the engine makes them alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import server as _needs_the_extra  # noqa: F401
from helpers import wan_folder
from helpers.waiting import eventually

import ardiff_engine as ade
from ardiff_engine.engine import Engine, Stream
from ardiff_engine.errors import ConfigError, OutOfMemoryError, PoolTooSmallError
from ardiff_engine.serve.decoder_room import DecoderRoom
from ardiff_engine.serve.errors import ApiError, api_error
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import ServedModel
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import Wish, read_wish

LIMITS = Limits(streams=2, queue=2, frames=41, grace=0.0)
SIZE = (32, 48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = wan_folder.write_folder(tmp_path_factory.mktemp("wan") / "model")
    return served_model("wan", ade.Pipeline.from_pretrained(folder, system="self-forcing"), LIMITS, SIZE)


@pytest.fixture(scope="module")
def service(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    found = Service(model, tmp_path_factory.mktemp("service") / "data", LIMITS)
    yield found
    found.close()


def test_lengths_by_seconds_are_brought_to_what_the_system_makes(model: ServedModel) -> None:
    order = model.order(read_wish({"prompt": "a cat", "seconds": "2"}, LIMITS))
    assert order.frames is not None and order.frames % 4 == 1 and order.frames <= 2 * order.fps
    assert order.size == (48, 32)
    with pytest.raises(ade.ArdiffError, match="num_frames"):
        model.order(Wish(prompt="a cat", num_frames=order.frames + 1))
    assert model.order(Wish(prompt="a cat", endless=True)).frames is None


@pytest.mark.parametrize("fields", [{"size": "480x320"}, {"lag": 3}, {"class_id": 0}, {"size": "33x31"}])
def test_what_the_model_cannot_do(model: ServedModel, fields: dict[str, object]) -> None:
    with pytest.raises((ApiError, ade.ArdiffError)):
        model.order(read_wish({"prompt": "a cat", **fields}, LIMITS))


def test_what_no_pool_of_this_server_holds_is_refused_for_good(model: ServedModel) -> None:
    """429 would send the client round for ever."""
    request = model.order(Wish(prompt="a cat", endless=True)).request
    with pytest.raises(PoolTooSmallError) as raised:
        model.engine.submit(replace(request, num_frames=300, memory=ade.memory.Full()))
    assert api_error(raised.value).status == 400


def test_steering_is_by_prompts(model: ServedModel) -> None:
    change = model.steered({"prompt": "blue dog"})
    assert isinstance(change.condition, torch.Tensor) and change.effect in ("keep", "recommit", "reset")
    for event in ({"class": 1}, {"prompt": 3}, {"prompt": "x" * 10**5}, {}):
        with pytest.raises(ApiError):
            model.steered(event)


def test_the_state_of_decoders_is_counted_when_a_video_is_admitted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, wish = service.model, Wish(prompt="a cat", num_frames=33)
    size = model.order(wish).request.size
    need = model.codec.bytes_per_stream(size)
    assert need > 0
    monkeypatch.setattr(model, "room", DecoderRoom(model.codec, model.engine.model.spec, need * 3 // 2))
    unread = replace(model.order(wish).request, max_ahead=1)  # it pauses, so it does not end
    first = model.room.opened(size, lambda: model.engine.submit(unread))
    with pytest.raises(OutOfMemoryError, match="beside 1"):
        service.jobs.create(wish, "me")
    assert service.store.count() == 0
    first.cancel()
    assert eventually(lambda: first.done)
    service.jobs.remove(service.jobs.create(wish, "me").id)
    monkeypatch.setattr(model, "room", DecoderRoom(model.codec, model.engine.model.spec, need - 1))
    with pytest.raises(ConfigError, match="decoder"):
        service.jobs.create(wish, "me")

    def refused() -> Stream:
        raise RuntimeError

    room = DecoderRoom(model.codec, model.engine.model.spec, need)
    for _ in range(2):  # what was refused has promised nothing
        with pytest.raises(RuntimeError):
            room.opened(size, refused)


def test_a_video_is_the_same_one_alone(service: Service, tmp_path: Path) -> None:
    model = service.model
    wish = Wish(prompt="a cat", num_frames=21, seed=4)
    job = service.jobs.create(wish, "me")
    other = service.jobs.create(Wish(prompt="blue dog", num_frames=33, seed=5), "me")
    assert eventually(
        lambda: (now := service.store.get(job.id, "me")) and now.status in ("completed", "failed")
    )
    found = service.store.get(job.id, "me")
    assert found is not None and found.status == "completed", found
    order, engine = model.order(wish), model.engine
    by_itself = Engine(
        engine.model,
        solver=engine.solver,
        memory=engine.memory,
        codec=model.codec,
        max_pages=engine.pool.manager.total,
    )
    frames = [picture.image.numpy() for picture in by_itself.submit(order.request).pictures()]
    assert np.stack(frames).shape == (21, 32, 48, 3)
    alone = ade.export_video(frames, tmp_path / "alone.mp4", order.fps)
    assert service.store.file(job.id).read_bytes() == alone.read_bytes()
    service.jobs.remove(other.id)
    assert service.model.engine.stats().pages_held == 0
