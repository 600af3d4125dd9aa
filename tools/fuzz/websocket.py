# SPDX-License-Identifier: Apache-2.0
"""Hostile messages for the WebSocket of a server.

    python -m tools.fuzz.websocket --messages 10000 --seed 1

starts `ardiff serve` with `moving-digits` and sends it messages that were good before they were changed.
Must not happen: a fault of the server (`server_error`), a traceback or a path in an answer, a connection that
ends as no limit ends it, a session that no longer answers, and pages or streams that are held when all have
gone. The same seed sends the same messages.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tools.fuzz.mutate import mutated
from tools.fuzz.plain_values import changed, json_text

PATIENCE = 300.0
"""Seconds for an answer, also on a machine with much else to do."""

QUICK = {"num_inference_steps": 3, "lag": 1, "format": "webp"}
GOOD: tuple[dict[str, Any], ...] = (
    {"type": "session.start", "num_frames": 4, **QUICK},
    {
        "type": "session.start",
        "endless": True,
        "seed": 3,
        "prompt": "digits",
        "resumable": True,
        **QUICK,
        "format": "mp4",
    },
    {"type": "session.interaction", "event_id": "e", "event": {"class": 1}, "stream_id": "s"},
    {"type": "session.interaction", "event_id": "e", "event": {"prompt": "a dog"}},
    {"type": "session.fork", "seed": 5, "event_id": "f"},
    {"type": "session.rollback", "chunk_index": 2},
    {"type": "session.suspend"},
    {"type": "session.resume", "event_id": "r"},
    {"type": "session.cancel", "event_id": "c"},
    {"type": "session.ping", "event_id": "p"},
    {"type": "session.reconnect", "secret": "0" * 32, "sequence": 3},
)
MESSAGES = 12
"""Of one connection, after its start."""
LIMIT = 1 << 16
CLOSED = {1000, 1001, 1002, 1007, 1008, 1009}
"""Ends that the protocol or a limit brings."""
TOLD = ("Traceback", 'File "', "/site-packages/", "ardiff_engine/")


@dataclass
class Found:
    """answers: how often each code or type came. problems: what must not happen."""

    sent: int = 0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)


def message(rng: random.Random) -> tuple[bytes, bool]:
    """What is sent, and whether as text; now and then with a byte that is no text."""
    good, how = rng.choice(GOOD), rng.randrange(12)
    if how == 0:
        data = json_text(good, rng)
        return data[: LIMIT + (rng.random() < 0.1)], True
    if how == 1:
        return json.dumps(good).encode(), False
    if how < 4:
        data = mutated(json.dumps(good).encode(), rng)[:LIMIT]
        # Text that is none ends the connection, so most of it is made text again.
        return data if rng.random() < 0.1 else data.decode(errors="replace").encode(), rng.random() < 0.9
    if how == 4:
        return json.dumps(good).encode(), True
    with contextlib.suppress(ValueError):  # a number of more digits than Python prints
        return json.dumps(changed(good, rng)).encode()[:LIMIT], True
    return b"{}", True


def run(socket: str, messages: int, seed: int) -> Found:
    """socket: ws://…/v1/realtime/video of a server that asks for no key."""
    found, rng = Found(), random.Random(seed)

    async def all_of_them() -> None:
        await _unchanged(socket, found)
        while found.sent < messages:
            # Of its own: where the server ends a session early, the next ones still send the same.
            await _session(socket, random.Random(rng.getrandbits(64)), found)

    asyncio.run(all_of_them())
    ready = socket.replace("ws://", "http://").replace("/v1/realtime/video", "/ready")
    until = time.monotonic() + PATIENCE
    while any(held := _held(ready)) and time.monotonic() < until:
        time.sleep(0.1)
    if any(held):
        found.problems.append(f"streams that run, that wait, and pages: {held} are left")
    return found


def _held(ready: str) -> tuple[int, int, int]:
    now = json.load(urllib.request.urlopen(ready, timeout=PATIENCE))
    return now["streams_running"], now["streams_waiting"], now["pages_held"]


async def _unchanged(address: str, found: Found) -> None:
    """The good messages as they are, in one session, so that none of them is refused in all of the run."""
    async with connect(address, open_timeout=PATIENCE, close_timeout=1, max_queue=None) as socket:
        for good in [*GOOD[1:], {"type": "session.ping", "event_id": "the last"}]:
            await socket.send(json.dumps(good))
            found.sent += 1
        await asyncio.wait_for(_answers(socket, found), PATIENCE)


async def _session(address: str, rng: random.Random, found: Found) -> None:
    async with connect(address, open_timeout=PATIENCE, close_timeout=1, max_queue=None) as socket:
        if rng.random() < 0.8:
            await socket.send(json.dumps(rng.choice(GOOD[:2])))
        last, allowed = "nothing", CLOSED
        reader = asyncio.create_task(_answers(socket, found))
        try:
            for _ in range(MESSAGES):
                data, text = message(rng)
                found.sent, last = found.sent + 1, repr(data[:200])
                # uvicorn hangs up on whoever sends that; what is on its way then comes back as a reset.
                if len(data) > LIMIT or (text and not _is_text(data)):
                    allowed = CLOSED | {1006}
                await socket.send(data, text=text)
                await asyncio.sleep(0)
            await socket.send('{"type": "session.ping", "event_id": "the last"}')
            await asyncio.wait_for(reader, PATIENCE)
        except ConnectionClosed:
            await reader
        except TimeoutError:
            found.problems.append(f"no answer any more; the last one sent was {last}")
        finally:
            reader.cancel()
        code = socket.close_code
        if code is not None and code not in allowed:
            found.problems.append(f"closed with {code} after {last}")
        if rng.random() < 0.5:
            socket.transport.abort()


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _answers(socket: ClientConnection, found: Found) -> None:
    """Until the last message is answered, or the connection ends."""
    with contextlib.suppress(ConnectionClosed):
        async for received in socket:
            if isinstance(received, bytes):
                continue
            answer = json.loads(received)
            code = answer["error"]["code"] if "error" in answer else answer["type"]
            found.answers[code] += 1
            if code == "server_error" or any(word in received for word in TOLD):
                found.problems.append(received[:500])
            if answer.get("event_id") == "the last":
                return


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ardiff_engine.cli", "serve", "--port", "0", "--data", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().rpartition(" at ")[2].strip()
            address = url.replace("http", "ws") + "/v1/realtime/video"
            found = run(address, options.messages, options.seed)
        finally:
            server.terminate()
            server.wait(PATIENCE)
    for problem in found.problems:
        print(problem)
    print(
        f"{found.sent} messages, {len(found.problems)} problems; answers: {dict(found.answers.most_common())}"
    )
    return int(bool(found.problems))


if __name__ == "__main__":
    sys.exit(main())
