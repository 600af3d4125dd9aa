# SPDX-License-Identifier: Apache-2.0
"""A server under load, and what it costs beside its engine.

`python benchmarks/serve_load.py --clients 200` starts `ardiff serve` with the bundled model. Clients
come as a Poisson process; each asks for one video or one live stream. A fifth of them cancels, some read
slowly, some break off; whoever is refused with 429 comes again. Each finished video must equal the one that
an engine alone makes of the same request, byte for byte, and at the end no page may be held. `--overhead`
instead makes the same files by the server and by its engine driven directly, and compares the frames per
second and the processor time. Both print one line of JSON. Needs the extra `serve` and httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from process_use import processor_seconds, resident, residents
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ardiff_engine import Pipeline
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine import Engine, Stream
from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import Order, ServedModel
from ardiff_engine.serve.pictures_out import PicturesOut
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.wish import Wish

UNLIKE = 32
"""Requests of a load; clients draw one of them."""
PING = 20.0
CANCELS, BREAKS, SLOW = 0.2, 0.1, 0.1
"""Shares: of all clients; of those with a live stream."""


def wishes(options: argparse.Namespace) -> list[Wish]:
    """Of all lengths from half of --frames to --frames."""
    half = max(1, options.frames // 2)
    return [
        Wish(
            num_frames=half + n % (options.frames - half + 1),
            num_inference_steps=options.steps,
            lag=options.lag,
            seed=n,
        )
        for n in range(UNLIKE)
    ]


def fields(wish: Wish) -> dict[str, Any]:
    names = ("num_frames", "num_inference_steps", "lag", "seed")
    return {name: getattr(wish, name) for name in names}


def driven(model: ServedModel, codec: Codec | None) -> Engine:
    """An engine as the server's, in this process. codec: decodes within its passes."""
    own = model.engine
    pages = own.pool.manager.total
    return Engine(own.model, solver=own.solver, memory=own.memory, codec=codec, max_pages=pages)


class Alone:
    """What the engine makes of each request when nothing else runs: digests of its file, of its pieces."""

    def __init__(self, asked: list[Wish], folder: Path) -> None:
        model = served_model("moving-digits", Pipeline.from_pretrained("moving-digits"), Limits())
        engine = driven(model, model.codec)
        self.files, self.pieces = [], []
        for wish in asked:
            order = model.order(wish)
            stream = engine.submit(order.request)
            out, pieces = PicturesOut("webp", order.fps, order.scale), hashlib.sha256()
            with Mp4Encoder(folder / "alone.mp4", order.fps) as encoder:
                for picture in stream.pictures():
                    pixels = picture.image.numpy()
                    encoder.write(enlarge(as_frames([pixels]), order.scale)[0])
                    for _, data in out.messages([pixels]):
                        pieces.update(data)
            self.files.append(hashlib.sha256((folder / "alone.mp4").read_bytes()).digest())
            self.pieces.append(pieces.digest())


class Load:
    """What the clients saw. ends: how many of them ended how. wrong: videos that are not those alone."""

    def __init__(self, url: str, seed: int, asked: list[Wish], alone: Alone) -> None:
        self.url, self.chance = url, random.Random(seed)
        self.asked, self.alone = asked, alone
        self.ends: Counter[str] = Counter()
        self.first_frame: list[float] = []
        self.whole: list[float] = []
        self.frames = self.wrong = self.again = 0

    async def video(self, client: httpx.AsyncClient, cancels: bool) -> None:
        kind, began = self.chance.randrange(UNLIKE), time.perf_counter()
        while (answer := await client.post("/v1/videos", json=fields(self.asked[kind]))).status_code == 429:
            self.again += 1
            await asyncio.sleep(self.chance.uniform(0.5, 1.5) * int(answer.headers["Retry-After"]))
        if answer.status_code != 200:
            self.ends[f"refused {answer.status_code}"] += 1
            return
        name = answer.json()["id"]
        if cancels:
            await asyncio.sleep(self.chance.random() * 2)
            await client.delete(f"/v1/videos/{name}")
            self.ends["cancelled"] += 1
            return
        while (video := (await client.get(f"/v1/videos/{name}")).json())["status"] not in (
            "completed",
            "failed",
        ):
            await asyncio.sleep(0.2)
        self.ends[video["status"]] += 1
        if video["status"] == "completed":
            content = (await client.get(f"/v1/videos/{name}/content")).content
            self.wrong += hashlib.sha256(content).digest() != self.alone.files[kind]
            self.frames += video["num_frames"]
            self.whole.append(time.perf_counter() - began)
        await client.delete(f"/v1/videos/{name}")

    async def live(self, cancels: bool, slow: bool, breaks: bool) -> None:
        kind = self.chance.randrange(UNLIKE)
        frames = self.asked[kind].num_frames or 1
        leave = self.chance.randrange(1, frames + 1) if cancels or breaks else None
        while not await self._watched(kind, leave, cancels, slow):
            self.again += 1
            await asyncio.sleep(self.chance.uniform(2.5, 7.5))

    async def _watched(self, kind: int, leave: int | None, cancels: bool, slow: bool) -> bool:
        """False: it was refused for now."""
        began, seen, pieces = time.perf_counter(), 0, hashlib.sha256()
        address = self.url.replace("http", "ws") + "/v1/realtime/video"
        wish = {**fields(self.asked[kind]), "format": "webp"}
        async with connect(address, open_timeout=60, close_timeout=1) as socket:
            await socket.send(json.dumps({"type": "session.start", **wish}))
            last = time.perf_counter()
            while True:
                # Also while frames come: the server ends who says nothing for a minute.
                if (left := last + PING - time.perf_counter()) <= 0:
                    await socket.send('{"type": "session.ping"}')
                    last = time.perf_counter()
                    continue
                try:
                    message = await asyncio.wait_for(socket.recv(), left)
                except TimeoutError:
                    continue
                if isinstance(message, bytes):
                    if seen == 0:
                        self.first_frame.append(time.perf_counter() - began)
                    seen += 1
                    pieces.update(message)
                    if seen == leave and cancels:
                        await socket.send('{"type": "session.stop"}')
                        self.ends["live cancelled"] += 1
                        return True
                    if seen == leave:
                        self.ends["broken off"] += 1
                        socket.transport.abort()
                        return True
                    if slow:
                        await asyncio.sleep(0.3)
                    continue
                event = json.loads(message)
                if event["type"] in ("error", "session.done"):
                    if event["error"]["code"] == "busy":
                        return False
                    self.ends[f"refused {event['error']['code']}"] += 1
                    return True
                if event["type"] == "video.done":
                    self.ends[f"live {event['status']}"] += 1
                    if event["status"] == "finished":
                        self.wrong += pieces.digest() != self.alone.pieces[kind]
                        self.frames += seen
                        self.whole.append(time.perf_counter() - began)
                    return True

    async def counted(self, client: Coroutine[Any, Any, None]) -> None:
        try:
            await client
        except ConnectionClosed as error:
            self.ends[f"connection closed, by the server: {error.rcvd}, by the client: {error.sent}"] += 1
        except (httpx.HTTPError, OSError) as error:
            self.ends[type(error).__name__] += 1

    async def run(self, clients: int, rate: float, until: float) -> int:
        """Clients that came, none of them after `until` seconds."""
        began, tasks = time.perf_counter(), set()
        limits = httpx.Limits(max_connections=256)
        came = 0
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:
            while came < clients and time.perf_counter() - began < until:
                came += 1
                cancels, kind = self.chance.random() < CANCELS, self.chance.random()
                if self.chance.random() < 0.5:
                    work = self.video(client, cancels)
                else:
                    work = self.live(cancels, kind > 1 - SLOW, kind < BREAKS)
                task = asyncio.create_task(self.counted(work))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if rate:
                    await asyncio.sleep(self.chance.expovariate(rate))
            await asyncio.gather(*tasks)
        return came


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)} if values else {}


def under_load(url: str, process: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    asked = wishes(options)
    load, memory, began = Load(url, options.seed, asked, Alone(asked, folder)), [], time.perf_counter()

    async def sampled() -> None:
        while True:
            ended = sum(load.ends.values())
            memory.append((ended, resident(process)))
            note = f"{time.perf_counter() - began:.0f} s: {ended} ended, {residents(process)} MiB"
            note += f", {load.wrong} wrong, {load.again} told to come again, {dict(load.ends)}"
            print(note, file=sys.stderr, flush=True)
            await asyncio.sleep(options.every)

    async def both() -> int:
        sampler = asyncio.create_task(sampled())
        came = await load.run(options.clients, options.rate, options.until)
        sampler.cancel()
        return came

    began = time.perf_counter()
    came = asyncio.run(both())
    seconds = time.perf_counter() - began
    time.sleep(1.0)
    ready = httpx.get(f"{url}/ready", timeout=60).json()
    return {
        "clients": came,
        "rate": options.rate,
        "seconds": round(seconds, 1),
        "ends": dict(load.ends),
        "wrong": load.wrong,
        "told_to_come_again": load.again,
        "frames_per_second": round(load.frames / seconds, 1),
        "first_frame_seconds": percentiles(load.first_frame),
        "whole_seconds": percentiles(load.whole),
        "pages_held": ready["pages_held"],
        "streams_left": ready["streams_running"] + ready["streams_waiting"],
        "ended_and_resident_mib": [*memory, (sum(load.ends.values()), resident(process))],
    }


# --- what the server costs


def long(options: argparse.Namespace, seed: int) -> Wish:
    return Wish(num_frames=4 * options.frames, num_inference_steps=options.steps, lag=options.lag, seed=seed)


def served(url: str, process: int, streams: int, options: argparse.Namespace) -> tuple[float, float]:
    """Frames per second of videos that are asked for together, until the last file is there; milliseconds of
    processor time for a frame."""
    with httpx.Client(base_url=url, timeout=120) as client:
        began, busy, frames = time.perf_counter(), processor_seconds(process), streams * 4 * options.frames
        asked = [fields(long(options, n)) for n in range(streams)]
        with ThreadPoolExecutor(streams) as people:
            made = list(people.map(lambda own: client.post("/v1/videos", json=own).json(), asked))
        names = [video["id"] for video in made]
        for name in names:
            while (video := client.get(f"/v1/videos/{name}").json())["status"] != "completed":
                if video["status"] == "failed":
                    raise RuntimeError(video["error"]["message"])
                time.sleep(1.0)  # as a client of OpenAI asks
        seconds, busy = time.perf_counter() - began, processor_seconds(process) - busy
        for name in names:
            client.delete(f"/v1/videos/{name}")
    return frames / seconds, busy / frames * 1e3


class Direct:
    """The same videos by the same engine in this process."""

    def __init__(self, folder: Path) -> None:
        pipe = Pipeline.from_pretrained("moving-digits")
        self._model, self._folder = served_model("moving-digits", pipe, Limits()), folder
        self._files, self._latents = driven(self._model, self._model.codec), driven(self._model, None)

    def run(self, streams: int, options: argparse.Namespace, files: bool) -> tuple[float, float]:
        """As `served`. files: pictures in the same files; else latents alone."""
        engine = self._files if files else self._latents
        orders = [self._model.order(long(options, n)) for n in range(streams)]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        running = [(engine.submit(order.request), order) for order in orders]
        encoders = [Mp4Encoder(self._folder / f"{n}.mp4", orders[n].fps) for n in range(streams)]
        while not all(stream.done and not stream.frames_ready for stream, _ in running):
            engine.step()
            for (stream, order), encoder in zip(running, encoders, strict=True):
                self._written(stream, order, encoder)
        for encoder in encoders:
            encoder.close()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        frames = streams * 4 * options.frames
        return frames / seconds, busy / frames * 1e3

    def _written(self, stream: Stream, order: Order, encoder: Mp4Encoder) -> None:
        for frame in stream.take_ready():
            for picture in frame.pictures:
                encoder.write(enlarge(as_frames([picture.image.numpy()]), order.scale)[0])


def overhead(url: str, process: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians of rounds in turns."""
    direct, rounds = Direct(folder), []
    for _ in range(options.rounds):
        rounds.append(
            [
                served(url, process, 8, options),
                direct.run(8, options, files=True),
                direct.run(8, options, files=False),
                served(url, process, 1, options),
            ]
        )
    turns = np.array(rounds)
    eight, files, latents, one = turns[:, :, 0].T
    found = {
        name: {"frames_per_second": round(fps, 1), "processor_ms": round(busy, 2)}
        for name, (fps, busy) in zip(
            ("served_8", "files_8", "latents_8", "served_1"), np.median(turns, axis=0), strict=True
        )
    }
    return found | {
        "share_of_files": round(float(np.median(eight / files)), 3),
        "share_of_latents": round(float(np.median(eight / latents)), 3),
        "eight_to_one": round(float(np.median(eight / one)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals per second; 0: all at once")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds; nobody comes after that")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between looks at the memory")
    parser.add_argument("--frames", type=int, default=32, help="of the longest video; --overhead takes 4 x")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lag", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of --overhead, all sides in turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "ardiff_engine.cli", "serve", "--port", "0"]
        command += ["--data", str(folder / "videos")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rpartition(" at ")[2].strip()
            measured = overhead if options.overhead else under_load
            print(json.dumps(measured(url, process.pid, options, folder)))
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
