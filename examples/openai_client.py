# SPDX-License-Identifier: Apache-2.0
"""A video from a server by OpenAI's own client (pip install openai). First, elsewhere: ardiff serve."""

from __future__ import annotations

import argparse

import openai

parser = argparse.ArgumentParser()
parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
parser.add_argument("--key", default="none", help="of a server that asks for one")
parser.add_argument("--prompt", default="moving digits")
parser.add_argument("--seconds", default="4")
parser.add_argument("--out", default="served.mp4")
options = parser.parse_args()

client = openai.OpenAI(base_url=options.url, api_key=options.key)
video = client.videos.create(prompt=options.prompt, seconds=options.seconds)
print(f"{video.id}: {video.status}")
video = client.videos.poll(video.id, poll_interval_ms=200)
if video.status != "completed":
    raise SystemExit(f"{video.id}: {video.status}, {video.error}")
client.videos.download_content(video.id).write_to_file(options.out)
print(f"{options.out}: {video.seconds} s of {video.size}")
