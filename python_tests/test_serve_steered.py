# SPDX-License-Identifier: Apache-2.0
"""A model with captions and actions behind the server: videos and steered live streams have the frames that
the pipeline makes alone."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.live_session import Session
from helpers.server import ServerProcess, running
from helpers.waiting import PATIENCE, eventually
from PIL import Image
from test_steered import CAPTION, write_model

import ardiff_engine as ade
from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.errors import ConfigError
from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.pipeline.steered import SteeredPipeline
from ardiff_engine.serve.errors import ApiError
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.load import load_model
from ardiff_engine.serve.ray.replayed import Replayed
from ardiff_engine.serve.realtime import Realtime
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import Wish, read_wish

httpx = pytest.importorskip("httpx")
LIMITS = Limits(streams=3, frames=40, grace=0.0)
BLOCK, STEPS = 2, 2
ASKED = {"prompt": CAPTION, "num_inference_steps": STEPS}
LIVE = {**ASKED, "lag": None, "size": "32x32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("steered") / "shapes")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SteeredPipeline:
    return SteeredPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model = served_model("shapes", SteeredPipeline.from_pretrained(folder), LIMITS)
    found = Service(model, tmp_path_factory.mktemp("service") / "data", LIMITS)
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(folder, tmp_path_factory.mktemp("live") / "data") as found:
        yield found
        assert found.stop() == 143
        assert "Traceback" not in found.errors, found.errors


def alone(pipe: SteeredPipeline, held: list[str], seed: int, steps: int = STEPS) -> np.ndarray:
    """The first frames of an endless stream with these actions, as `ardiff play` makes them."""
    numbers = [ACTIONS.index(name) for name in held]
    stream = pipe.stream(CAPTION, action=lambda n: numbers[min(n, len(held) - 1)], steps=steps, seed=seed)
    try:
        return np.stack([next(stream).image.numpy() for _ in held])
    finally:
        stream.close()


def test_the_model_says_what_it_takes(server: ServerProcess) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models", timeout=PATIENCE).json()["data"]
    assert model["takes"] == ["prompt", "action"] and model["actions"] == list(ACTIONS)


def test_a_video_with_actions_is_the_one_alone(
    service: Service, pipe: SteeredPipeline, tmp_path: Path
) -> None:
    wanted = {**ASKED, "num_frames": 12, "seed": 3}
    held = ["none"] * 3 + ["left"] * 3 + ["up"]
    jobs = [
        service.jobs.create(read_wish({**wanted, **more}, LIMITS), "me") for more in ({"actions": held}, {})
    ]
    for job in jobs:
        assert eventually(lambda name=job.id: service.store.get(name, "me").completed_at is not None)
        assert service.store.get(job.id, "me").status == "completed"
    files = [service.store.file(job.id).read_bytes() for job in jobs]
    assert files[0] != files[1], "actions act"
    for file, own in zip(files, (held + ["up"] * 5, ["none"] * 12), strict=True):
        pictures = enlarge(as_frames(list(alone(pipe, own, 3))), 256 // 32)
        expected = ade.export_video(list(pictures), tmp_path / "alone.mp4", pipe.fps)
        assert file == expected.read_bytes()


def test_lengths_are_whole_blocks_and_forms_have_commas(service: Service) -> None:
    order = service.model.order(read_wish({"prompt": CAPTION, "seconds": "0.8"}, LIMITS))
    assert order.fps == 16 and order.frames == 12 and order.size == (256, 256)
    assert (
        service.model.order(read_wish({"prompt": CAPTION, "seconds": "0.01", "fps": 100}, LIMITS)).frames
        == BLOCK
    )
    assert read_wish({"actions": "left, none,up"}, LIMITS).actions == ("left", "none", "up")
    assert Wish.of(json.loads(json.dumps(read_wish({"actions": ["up"]}, LIMITS).as_dict()))).actions == (
        "up",
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"actions": ["left", "jump"]}, "'jump'"),
        ({"actions": ["left"] * 13, "num_frames": 12}, "13 actions"),
        ({"actions": ["left"] * 41}, "at most 40"),
        ({"actions": [3]}, "a list"),
        ({"actions": {"left": 1}}, "a list"),
        ({"lag": 3}, "lag"),
        ({"class_id": 1}, "class_id"),
        ({"negative_prompt": "a dog"}, "negative_prompt"),
        ({"size": "48x48"}, "32x32"),
        ({"prompt": "x" * 3000}, "caption"),
        ({"num_frames": 5}, "5"),
    ],
)
def test_what_it_cannot_make_is_a_typed_error(service: Service, fields: dict[str, Any], told: str) -> None:
    with pytest.raises((ApiError, ade.ArdiffError)) as raised:
        service.jobs.create(read_wish({**ASKED, "num_frames": 12, **fields}, LIMITS), "me")
    said = raised.value.message if isinstance(raised.value, ApiError) else str(raised.value)
    assert told in said, said
    assert getattr(raised.value, "status", 400) == 400


def test_events_that_it_does_not_know(service: Service, tiny_model: Path) -> None:
    for event in (
        {"action": "jump"},
        {"action": 1},
        {"action": ["left"]},
        {"action": "left", "prompt": "x"},
        {},
    ):
        with pytest.raises(ApiError, match="left, right"):
            service.model.steered(event)
    digits = served_model("tiny", ade.Pipeline.from_pretrained(tiny_model), LIMITS)
    with pytest.raises(ApiError, match="takes no actions"):
        digits.order(Wish(actions=("left",)))
    with pytest.raises(ApiError, match="models"):
        digits.steered({"action": "left"})


def test_options_of_other_models_are_refused(folder: Path) -> None:
    plain = {"model": str(folder), "device": "cpu", "dtype": "float32", "system": None, "size": None}
    parts = dict.fromkeys(("transformer", "vae", "text", "lora", "tile"))
    for other in ({"system": "wan"}, {"size": (480, 832)}, {"dtype": "bfloat16"}, {"vae": "x"}):
        with pytest.raises(ConfigError, match=next(iter(other))):
            load_model(argparse.Namespace(**plain | parts | other), LIMITS)
    assert load_model(argparse.Namespace(**plain | parts), LIMITS).name == "shapes"


class Played:
    """A live session, and which action each of its frames must have had."""

    def __init__(self, server: ServerProcess, **wish: Any) -> None:
        self.session = Session(server, **{**LIVE, **wish})
        self.stream = self.session.stream
        self.held: list[tuple[int, str]] = [(0, "none")]
        self.events: dict[str, int] = {}

    def press(self, action: str) -> int:
        """The first frame that it holds for."""
        name = f"event {len(self.events)}"
        self.session.send(
            "session.interaction", event_id=name, stream_id=self.stream, event={"action": action}
        )
        receipt = self.session.until("session.interaction.queued", self.stream)
        assert (receipt["event_id"], receipt["effect"], receipt["forgotten"]) == (name, "keep", [0, 0])
        first = receipt["first_chunk"]
        self.events[name] = first
        self.held = [own for own in self.held if own[0] < first] + [(first, action)]
        return int(first)

    def actions(self, frames: int) -> list[str]:
        return [[name for first, name in self.held if first <= frame][-1] for frame in range(frames)]

    def shown(self, frames: int) -> np.ndarray:
        """Of the stream, once there are so many."""
        self.session.read(frames, self.stream)
        return self.session.video(self.stream)[:frames]

    def named(self) -> dict[str, int]:
        """The piece that names each event."""
        applied = self.session.applied[self.stream]
        return {event: index for index, events in applied.items() for event in events}


def test_a_steered_stream_is_the_video_with_these_actions(
    server: ServerProcess, pipe: SteeredPipeline
) -> None:
    """Each receipt says for which frame on, and the piece with that frame names the event."""
    played = Played(server, endless=True, seed=5)
    played.shown(3)
    for action in ("left", "none", "up"):
        first = played.press(action)
        assert first % BLOCK == 0 and first >= len(played.session.frames[played.stream])
        played.shown(first + 3)
    frames = max(played.events.values()) + 3
    shown = played.shown(frames)
    assert played.named() == played.events
    played.session.leave()
    np.testing.assert_array_equal(shown, alone(pipe, played.actions(frames), 5))
    assert (shown != alone(pipe, ["none"] * frames, 5)).any()


def test_a_pause_a_fork_and_a_way_back_keep_the_actions(server: ServerProcess, pipe: SteeredPipeline) -> None:
    """With so many steps that no machine ends it under the test; an endless one would forget frames."""
    steps, wish = 200, {"num_frames": 1000, "seed": 6, "actions": ["down", "none"]}
    played = Played(server, **wish, num_inference_steps=steps)
    played.held = [(0, "down"), (1, "none")]
    session, first = played.session, played.stream
    back = played.press("left")
    session.send("session.suspend")
    assert session.until("session.suspended")["pages"] == 0
    played.press("right")
    session.send("session.resume")
    session.until("session.resumed")
    played.shown(1)
    session.send("session.fork", stream_id=first)
    played.stream, held = session.until("session.forked")["stream_id"], list(played.held)
    frames = played.press("up") + 1
    session.read(1, played.stream)
    begins, forked = min(session.frames[played.stream]), played.actions(frames)
    assert forked[-1] == "up" and 0 < begins < frames
    shown = played.shown(frames - begins)
    session.send("session.cancel", stream_id=played.stream)
    session.until("video.done", played.stream)
    played.stream, played.held = first, held
    assert played.press("none") >= back
    plain = played.shown(back + 1)[:back]
    session.send("session.rollback", chunk_index=back)
    session.until("session.rolled_back")
    frames_now = session.frames[first]
    session.frames[first] = {index: frame for index, frame in frames_now.items() if index < back}
    again = played.shown(back + 3)
    session.leave()
    # Not before: until then the stream runs on.
    np.testing.assert_array_equal(shown, alone(pipe, forked, 6, steps)[begins:])
    expected = ["down"] + ["none"] * (back + 2)  # what is held now holds from there on
    np.testing.assert_array_equal(again, alone(pipe, expected, 6, steps))
    np.testing.assert_array_equal(again[:back], plain)


def test_an_endless_stream_goes_back_over_what_the_page_shows(
    service: Service, pipe: SteeredPipeline
) -> None:
    model = service.model
    stream = model.engine.submit(model.order(Wish(**ASKED, endless=True, seed=7)).request)
    shown = iter(stream)
    for _ in range(30):
        next(shown)
    model.steered({"action": "up"}).of(stream)
    stream.rollback(10)
    decoder = model.codec.decoder()
    again = [decoder.push(next(shown).latent[None])[0].numpy() for _ in range(4)]
    stream.cancel()
    np.testing.assert_array_equal(np.stack(again), alone(pipe, ["none"] * 10 + ["up"] * 4, 7)[10:])


class Watcher:
    """The socket of a session in this process. frames: of its stream."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.got: list[dict[str, Any]] = []
        self.frames: dict[int, np.ndarray] = {}
        for message in messages:
            self.say(message)

    def say(self, message: dict[str, Any]) -> None:
        self._inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def receive(self) -> dict[str, Any]:
        return await self._inbox.get()

    async def send_text(self, text: str) -> None:
        self.got.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        self.frames[self.got[-1]["chunk_index"]] = np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    async def close(self, code: int) -> None: ...


def watched(
    service: Service, kind: type[Realtime], frames: int, start: dict[str, Any], press: str = ""
) -> Watcher:
    """Until so many frames have come. press: after the second one."""

    async def session() -> Watcher:
        watcher = Watcher({"type": "session.start", **start})
        task = asyncio.create_task(kind(service, watcher, "me").serve())  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE):
            while len(watcher.frames) < 2:
                await asyncio.sleep(0.01)
            if press:
                watcher.say({"type": "session.interaction", "event_id": "e", "event": {"action": press}})
            while len(watcher.frames) < frames or (press and "e" not in told(watcher).values()):
                await asyncio.sleep(0.01)
            watcher.say({"type": "session.stop"})
            await task
        return watcher

    return asyncio.run(session())


def told(watcher: Watcher) -> dict[int, str]:
    pieces = [message for message in watcher.got if message["type"] == "video.chunk_metadata"]
    return {piece["chunk_index"]: event for piece in pieces for event in piece["applied_event_ids"]}


def test_a_replica_that_takes_over_makes_the_same_frames(service: Service) -> None:
    """As `ardiff serve --ray` has it when one dies: the stream again from its start, with its actions."""
    start = {**ASKED, "endless": True, "seed": 8, "format": "png", "size": "32x32"}
    before = watched(service, Realtime, 12, start, "left")
    (receipt,) = (own for own in before.got if own["type"] == "session.interaction.queued")
    fields = {name: receipt[name] for name in ("tick", "first_chunk")}
    steered = [{"event": {"action": "left"}, "event_id": "e", **fields}]
    after = watched(service, Replayed, receipt["first_chunk"] + 4, {**start, "steered": steered})
    both = sorted(set(before.frames) & set(after.frames))
    assert both[-1] > receipt["first_chunk"] > 0
    for index in both:
        np.testing.assert_array_equal(after.frames[index], before.frames[index])
    assert told(after)[receipt["first_chunk"]] == told(before)[receipt["first_chunk"]] == "e"
