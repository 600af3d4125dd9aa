# SPDX-License-Identifier: Apache-2.0
"""A live stream from a server, steered on its way (pip install websockets). First, elsewhere: ardiff serve.

Writes the fragments into one mp4, asks for another class or prompt after a third of the frames, and says
which frame is the first to show it.
"""

from __future__ import annotations

import argparse
import json

from websockets.sync.client import connect

parser = argparse.ArgumentParser()
parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/realtime/video")
parser.add_argument("--key", help="of a server that asks for one")
parser.add_argument("--frames", type=int, default=48)
parser.add_argument("--steer", default='{"class": 3}', help='an event: {"class": 3} or {"prompt": "a dog"}')
parser.add_argument("--out", default="live.mp4")
options = parser.parse_args()

headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
with connect(options.url, additional_headers=headers) as socket, open(options.out, "wb") as file:

    def send(kind: str, **fields: object) -> None:
        socket.send(json.dumps({"type": kind, **fields}))

    send("session.start", num_frames=options.frames, format="mp4")
    frames = 0
    while True:
        message = json.loads(socket.recv())
        if message["type"] == "video.chunk_metadata":
            file.write(socket.recv())
            before, frames = frames, frames + message["frames"]
            if before < options.frames // 3 <= frames:
                send("session.interaction", event_id="steer", event=json.loads(options.steer))
            for event in message["applied_event_ids"]:
                print(f"frame {message['first_frame']} is the first to show {event!r}")
        elif message["type"] == "session.interaction.queued":
            print(f"it will hold from piece {message['first_chunk']} on")
        elif message["type"] == "error":
            raise SystemExit(message["error"]["message"])
        elif message["type"] == "video.done":
            print(f"{options.out}: {frames} frames, {message['status']}")
            break
    send("session.stop")
