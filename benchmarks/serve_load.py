# SPDX-License-Identifier: Apache-2.0
"""A server under load, and what it costs beside its engine.

`python benchmarks/serve_load.py --clients 200` starts `ardiff serve` with the bundled model. Clients
come as a Poisson process; each asks for one video or one live stream. Some cancel, some read slowly,
some break off. At the end no page may be held. `--overhead` instead makes the same videos by the server
and by its engine alone, and compares the frames per second. Both print one line of JSON. Needs the extra
`serve` and httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ardiff_engine import Pipeline
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.wish import Wish

FRAMES, STEPS, LAG = 32, 50, 5
PING = 20.0


class Load:
    """What the clients saw. ends: how many of them ended how."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.chance = url, random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.first_frame: list[float] = []
        self.whole: list[float] = []
        self.frames = 0

    async def video(self, client: httpx.AsyncClient, cancels: bool) -> None:
        began = time.perf_counter()
        fields = {
            "num_frames": FRAMES,
            "num_inference_steps": STEPS,
            "lag": LAG,
            "seed": self.chance.randrange(9999),
        }
        answer = await client.post("/v1/videos", json=fields)
        if answer.status_code != 200:
            self.ends[f"refused {answer.status_code}"] += 1
            return
        name = answer.json()["id"]
        if cancels:
            await asyncio.sleep(self.chance.random() * 3)
            await client.delete(f"/v1/videos/{name}")
            self.ends["cancelled"] += 1
            return
        while (video := (await client.get(f"/v1/videos/{name}")).json())["status"] not in (
            "completed",
            "failed",
        ):
            await asyncio.sleep(0.1)
        self.ends[video["status"]] += 1
        self.frames += FRAMES
        self.whole.append(time.perf_counter() - began)
        await client.delete(f"/v1/videos/{name}")

    async def live(self, slow: bool, breaks: bool) -> None:
        began = time.perf_counter()
        wish = {"num_frames": FRAMES, "num_inference_steps": STEPS, "lag": LAG, "format": "webp"}
        leave, seen = self.chance.randrange(1, FRAMES) if breaks else None, 0
        address = self.url.replace("http", "ws") + "/v1/realtime/video"
        try:
            async with connect(address, open_timeout=60, close_timeout=1) as socket:
                await socket.send(json.dumps({"type": "session.start", **wish}))
                while True:
                    try:
                        message = await asyncio.wait_for(socket.recv(), PING)
                    except TimeoutError:  # it waits for pages, and must say that it still wants them
                        await socket.send('{"type": "session.ping"}')
                        continue
                    if isinstance(message, bytes):
                        if seen == 0:
                            self.first_frame.append(time.perf_counter() - began)
                        seen += 1
                        if seen == leave:
                            self.ends["broken off"] += 1
                            return
                        if slow:
                            await asyncio.sleep(0.3)
                        continue
                    event = json.loads(message)
                    if event["type"] in ("error", "session.done"):
                        self.ends[f"refused {event['error']['code']}"] += 1
                        return
                    if event["type"] == "video.done":
                        self.ends[f"live {event['status']}"] += 1
                        self.frames += seen
                        self.whole.append(time.perf_counter() - began)
                        return
        except (ConnectionClosed, OSError) as error:
            self.ends[type(error).__name__] += 1

    async def run(self, clients: int, rate: float) -> float:
        began, tasks = time.perf_counter(), []
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            for _ in range(clients):
                kind = self.chance.random()
                if kind < 0.5:
                    tasks.append(asyncio.create_task(self.video(client, cancels=kind < 0.1)))
                else:
                    tasks.append(asyncio.create_task(self.live(slow=kind > 0.9, breaks=0.5 < kind < 0.6)))
                await asyncio.sleep(self.chance.expovariate(rate))
            await asyncio.gather(*tasks)
        return time.perf_counter() - began


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)} if values else {}


def resident(process: int) -> float:
    """MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def under_load(url: str, process: int, options: argparse.Namespace) -> dict[str, Any]:
    load, before = Load(url, options.seed), resident(process)
    seconds = asyncio.run(load.run(options.clients, options.rate))
    time.sleep(1.0)
    ready = httpx.get(f"{url}/ready", timeout=60).json()
    return {
        "clients": options.clients,
        "rate": options.rate,
        "seconds": round(seconds, 1),
        "ends": dict(load.ends),
        "frames_per_second": round(load.frames / seconds, 1),
        "first_frame_seconds": percentiles(load.first_frame),
        "whole_seconds": percentiles(load.whole),
        "pages_held": ready["pages_held"],
        "streams_left": ready["streams_running"] + ready["streams_waiting"],
        "resident_mib": [before, resident(process)],
    }


def served(url: str, streams: int) -> float:
    """Frames per second of videos that are asked for together, until the last file is there."""
    with httpx.Client(base_url=url, timeout=120) as client:
        began = time.perf_counter()
        fields = {"num_frames": 4 * FRAMES, "num_inference_steps": STEPS, "lag": LAG}
        names = [client.post("/v1/videos", json={**fields, "seed": n}).json()["id"] for n in range(streams)]
        for name in names:
            while (video := client.get(f"/v1/videos/{name}").json())["status"] != "completed":
                if video["status"] == "failed":
                    raise RuntimeError(video["error"]["message"])
                time.sleep(0.02)
        return streams * 4 * FRAMES / (time.perf_counter() - began)


def direct(streams: int) -> float:
    """Of the same videos by the same engine in this process, decoded and not written."""
    model = served_model("moving-digits", Pipeline.from_pretrained("moving-digits"), Limits())
    wishes = [Wish(num_frames=4 * FRAMES, num_inference_steps=STEPS, lag=LAG, seed=n) for n in range(streams)]
    began = time.perf_counter()
    running = [model.engine.submit(model.order(wish).request) for wish in wishes]
    while not all(stream.done and not stream.frames_ready for stream in running):
        model.engine.step()
        for stream in running:
            stream.take_ready()
    return streams * 4 * FRAMES / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="of --overhead, both sides in turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "ardiff_engine.cli",
            "serve",
            "--port",
            "0",
            "--data",
            f"{folder}/videos",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rpartition(" at ")[2].strip()
            if options.overhead:
                turns = [(served(url, 8), served(url, 1), direct(8)) for _ in range(options.rounds)]
                eight, one, alone = (round(max(side), 1) for side in zip(*turns, strict=True))
                print(
                    json.dumps(
                        {"served_8": eight, "served_1": one, "direct_8": alone, "share": eight / alone}
                    )
                )
            else:
                print(json.dumps(under_load(url, process.pid, options)))
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
