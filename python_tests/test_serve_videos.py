# SPDX-License-Identifier: Apache-2.0
"""/v1/videos of a real server process, by OpenAI's own client and by hand."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from effort import ALL
from helpers.server import ServerProcess, running
from helpers.waiting import PATIENCE, eventually

import ardiff_engine as ade
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError
from ardiff_engine.media import export_video
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.serve import gate
from ardiff_engine.serve.store import KILLED, MOST_DEATHS, Job, Store

httpx, openai = pytest.importorskip("httpx"), pytest.importorskip("openai")
KEYS = ("k" * 16 + "-first", "k" * 16 + "-other")
QUICK = {"num_inference_steps": 6, "lag": 2}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys.txt").write_text("\n".join(KEYS))
    with running(tiny_model, folder / "data", "--api-key-file", str(folder / "keys.txt")) as found:
        yield found
        assert found.stop() == 143
        assert not any(key in found.errors for key in KEYS)
        assert "Traceback" not in found.errors


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=PATIENCE
    ) as own:
        yield own


def finished(client: httpx.Client, video: str) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        return client.get(f"/v1/videos/{video}").json()

    assert eventually(lambda: found()["status"] in ("completed", "failed"))
    return found()


@cache
def engine_of(model: Path) -> Engine:
    pipe = ade.Pipeline.from_pretrained(model)
    memory = RecomputedWindow(pipe.transformer.spec.num_frames)
    solver = ade.solvers.DDIM(pipe.schedule, 6, prediction=pipe.prediction)
    return Engine(pipe.transformer, solver=solver, memory=memory, codec=pipe.codec, max_pages=256)


def file_alone(model: Path, target: Path, num_frames: int, seed: int, class_id: int | None = None) -> bytes:
    """What the engine makes of the same request when nothing else runs, as the same kind of file."""
    stream = engine_of(model).submit(Request(num_frames=num_frames, lag=2, seed=seed, condition=class_id))
    frames = [picture.image.numpy() for picture in stream.pictures()]
    return export_video(frames, target, 8.0, scale=16).read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_official_client_works_unchanged(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS[0], max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [
            client.models.retrieve(client.models.list().data[0].id).id
        ]
        video = client.videos.create(prompt="digits", seconds="4", extra_body=QUICK)
        assert (video.object, video.seconds, video.prompt) == ("video", "4", "digits")
        assert video.status in ("queued", "in_progress", "completed")
        while video.status in ("queued", "in_progress"):
            time.sleep(0.02)
            video = client.videos.retrieve(video.id)
        assert (video.status, video.progress) == ("completed", 100)
        content = client.videos.download_content(video.id).read()
        assert content[4:8] == b"ftyp"
        assert video.id in [own.id for own in client.videos.list(limit=1, order="desc")]
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)
        with pytest.raises(openai.BadRequestError, match="seconds"):
            client.videos.create(prompt="digits", seconds="100000")  # type: ignore[arg-type]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError):
            other.videos.list()


def test_every_finished_video_is_the_same_one_alone_bit_for_bit(
    client: httpx.Client, tiny_model: Path, tmp_path: Path
) -> None:
    asked = [(5 + n % 9, 100 + n, n % 4 if n % 4 < 3 else None) for n in range(24 if ALL else 12)]
    ids = []
    for n, (frames, seed, class_id) in enumerate(asked):
        fields = {"num_frames": frames, "seed": seed, "class_id": class_id, **QUICK}
        if n % 2:
            form = {name: (None, str(value)) for name, value in fields.items() if value is not None}
            answer = client.post("/v1/videos", files=form)
        else:
            answer = client.post("/v1/videos", json=fields)
        assert answer.status_code == 200, answer.text
        ids.append(answer.json()["id"])
    cancelled = random.Random(0).sample(range(len(ids)), len(ids) // 4)
    for n in cancelled:
        assert client.delete(f"/v1/videos/{ids[n]}").json()["deleted"]
    for n in set(range(len(ids))) - set(cancelled):
        assert finished(client, ids[n])["status"] == "completed"
        served = client.get(f"/v1/videos/{ids[n]}/content").content
        assert served == file_alone(tiny_model, tmp_path / f"{n}.mp4", *asked[n])
    ready = client.get("/ready").json()
    assert (ready["pages_held"], ready["streams_running"]) == (0, 0)


def test_json_that_curl_calls_a_form_is_read_as_json(client: httpx.Client) -> None:
    """It had made a video of nothing but defaults: a form with one odd name and no value."""
    curl = {"Content-Type": "application/x-www-form-urlencoded"}
    for body in ('{"num_frames": 3, "seed": 4}', "num_frames=3&seed=4"):
        made = client.post("/v1/videos", content=body, headers=curl).json()
        assert (made["num_frames"], made["seed"]) == (3, 4)
        assert client.delete(f"/v1/videos/{made['id']}").json()["deleted"]
    refused = client.post("/v1/videos", content=' {"frames": 3}', headers=curl)
    assert refused.status_code == 400 and "frames" in refused.json()["error"]["message"]


def test_sync_gives_the_file_and_lists_have_pages(client: httpx.Client) -> None:
    made = [client.post("/v1/videos/sync", json={"num_frames": 4, **QUICK}) for _ in range(3)]
    assert all(answer.content[4:8] == b"ftyp" for answer in made)
    newest = client.get("/v1/videos", params={"limit": 2}).json()
    assert len(newest["data"]) == 2 and newest["has_more"]
    after = client.get("/v1/videos", params={"limit": 2, "after": newest["last_id"]}).json()["data"]
    assert not {own["id"] for own in after} & {own["id"] for own in newest["data"]}
    other = {"Authorization": f"Bearer {KEYS[1]}"}
    assert client.get("/v1/videos", headers=other).json()["data"] == []
    name = newest["data"][0]["id"]
    assert client.get(f"/v1/videos/{name}", headers=other).status_code == 404
    assert client.delete(f"/v1/videos/{name}", headers=other).status_code == 404
    assert client.get(f"/v1/videos/{name}/content").status_code == 200


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"seconds": "nan"}, "seconds"),
        ({"seconds": []}, "seconds"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": True}, "num_frames"),
        ({"num_frames": 10**9}, "num_frames"),
        ({"num_inference_steps": 10**6}, "steps"),
        ({"size": "7x7"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"size": "2048x2048"}, "size"),  # 128 times the model's: more than is enlarged
        ({"size": {"w": 1}}, "size"),
        ({"class_id": 99}, "class_id"),
        ({"lag": 7, "num_inference_steps": 3}, "lag"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"negative_prompt": "no"}, "negative_prompt"),
        ({"promt": "x"}, "promt"),
        ({"endless": True}, "endless"),
        ({"seed": 2**70}, "seed"),
        ({"guidance_scale": "inf"}, "guidance_scale"),
        ([], "body"),
    ],
)
def test_mistakes_are_told_and_change_nothing(client: httpx.Client, fields: Any, word: str) -> None:
    before = len(client.get("/v1/videos", params={"limit": 100}).json()["data"])
    answer = client.post("/v1/videos", json=fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and word in error["message"] and "Traceback" not in answer.text
    assert len(client.get("/v1/videos", params={"limit": 100}).json()["data"]) == before


def test_other_refusals(server: ServerProcess, client: httpx.Client) -> None:
    assert client.post("/v1/videos", json={"model": "other"}).status_code == 404
    assert client.post("/v1/videos", content=b"{" * 1000).status_code == 400
    assert client.post("/v1/videos", content=b"x" * (2 << 20)).status_code == 413
    chunked = client.post("/v1/videos", content=(b"x" * 65536 for _ in range(40)))
    assert chunked.status_code == 413
    for upload in (
        client.post("/v1/videos", files={"input_reference": ("../../a.png", b"x")}),
        client.post("/v1/videos", files={"prompt": ("a.mp4", b"x" * 100_000)}),
        client.post("/v1/videos", json={"input_reference": {"image_url": "file:///etc/passwd"}}),
    ):
        assert (upload.status_code, upload.json()["error"]["code"]) == (400, "pictures_not_taken")
    for path in ("/v1/videos/..%2f..%2fetc%2fpasswd", "/v1/videos/x/content", "/v1/videos/%00"):
        assert client.get(path).status_code == 404
    assert client.get("/v1/videos", params={"limit": "0"}).status_code == 400
    assert client.get("/v1/videos", headers={"Origin": "http://evil.example"}).status_code == 403
    assert httpx.get(f"{server.url}/v1/videos", timeout=PATIENCE).status_code == 401
    assert httpx.get(f"{server.url}/health", timeout=PATIENCE).json()["status"] == "ok"
    metrics = client.get("/metrics").text
    assert "ardiff_pages_free" in metrics and "ardiff_serve_videos" in metrics


def test_a_full_queue_says_when_to_come_again(tiny_model: Path, tmp_path: Path) -> None:
    long = {"num_frames": 1000, "num_inference_steps": 1000, "lag": 150}
    with running(tiny_model, tmp_path / "data", "--streams", "1", "--queue", "2") as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            answers = [client.post("/v1/videos", json=long) for _ in range(8)]
            codes = [answer.status_code for answer in answers]
            assert codes[:3] == [200] * 3 and codes[-1] == 429
            refused = answers[-1]
            assert int(refused.headers["Retry-After"]) > 0 and "pages" in refused.json()["error"]["message"]
            waiting = client.get(f"/v1/videos/{answers[2].json()['id']}").json()
            assert waiting["status"] == "queued"
            for answer in answers:
                if answer.status_code == 200:
                    client.delete(f"/v1/videos/{answer.json()['id']}")
            assert eventually(lambda: client.get("/ready").json()["pages_held"] == 0)
            foreign = client.get("/health", headers={"Host": "evil.example"})
            assert foreign.status_code == 403


def listed(client: httpx.Client) -> list[dict]:
    """All videos, page by page."""
    found: list[dict] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = client.get("/v1/videos", params={"limit": 100, **after}).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def killed_at_random(model: Path, folder: Path, times: int) -> None:
    """Kill a server with videos at work, again and again; then let the last one finish what was accepted."""
    chance = random.Random(times)
    whole: dict[str, bytes] = {}
    asked: dict[str, dict[str, int]] = {}
    for _ in range(times):
        with running(model, folder) as server:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
                for name, content in whole.items():
                    assert client.get(f"/v1/videos/{name}/content").content == content
                videos = listed(client)
                assert {own["id"] for own in videos} == set(asked)
                assert all(KILLED in own["error"]["message"] for own in videos if own["status"] == "failed")
                for _ in range(4):
                    fields = {"num_frames": chance.randint(4, 40), "seed": chance.randrange(1000)}
                    answer = client.post("/v1/videos", json={**fields, **QUICK})
                    # What earlier servers have left counts: there may be no room for more.
                    assert answer.status_code in (200, 429), answer.text
                    if answer.status_code == 200:
                        asked[answer.json()["id"]] = fields
                time.sleep(chance.random() * 0.6)

                def some_are_whole(client: httpx.Client = client) -> bool:
                    for own in listed(client):
                        if own["status"] == "completed" and own["id"] not in whole:
                            whole[own["id"]] = client.get(f"/v1/videos/{own['id']}/content").content
                    return bool(whole)

                assert eventually(some_are_whole)  # on a slow machine the first one takes its time
    with running(model, folder) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        ends = {name: finished(client, name) for name in asked}
        for name, end in ends.items():
            if end["status"] == "completed":
                content = client.get(f"/v1/videos/{name}/content").content
                assert content == file_alone(model, folder.with_suffix(".mp4"), **asked[name])
            else:
                assert times >= MOST_DEATHS and KILLED in end["error"]["message"]
        assert len(list(folder.glob("*.mp4"))) == sum(end["status"] == "completed" for end in ends.values())
        assert not list(folder.glob("*.part"))
        assert eventually(lambda: client.get("/ready").json()["pages_held"] == 0)


def test_a_killed_server_loses_no_video_and_each_comes_out_as_if_it_had_lived(
    tiny_model: Path, tmp_path: Path
) -> None:
    killed_at_random(tiny_model, tmp_path / "data", 1)


@pytest.mark.slow
def test_fifty_kills(tiny_model: Path, tmp_path: Path) -> None:
    killed_at_random(tiny_model, tmp_path / "data", 50)


def test_a_file_that_was_whole_when_the_server_died_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("whole", "half", "none"):
        store.add(Job(name, "me", "queued", 1, None, "m", {}, None))
    (tmp_path / "whole.mp4").write_bytes(b"film")
    (tmp_path / "half.part").write_bytes(b"fi")
    (tmp_path / "nobodys.mp4").write_bytes(b"film")
    left = store.recover()
    found = {job.id: job.status for job in store.page("me", None, 10, True)}
    assert found == {"whole": "completed", "half": "queued", "none": "queued"}
    assert [job.id for job in left] == ["half", "none"]
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["whole.mp4"] and not list(
        tmp_path.glob("*.part")
    )
    with pytest.raises(ade.ArdiffError, match="no other server"):
        Store(tmp_path)
    store.close()


def test_what_is_asked_is_answered_while_a_row_is_on_its_way_to_the_disk(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        store.add(Job("a", "me", "queued", 1, None, "m", {}, None))
        store.begin("a")
        with ThreadPoolExecutor(1) as pool:
            with store._lock:
                asked = pool.submit(lambda: (store.get("a", "me"), store.page("me", None, 9, True)))
                found, page = asked.result(PATIENCE)
        assert found is not None and found.status == "in_progress" and page == [found]
        store.finish("a", None, 7)
        done = store.get("a", "me")
    with contextlib.closing(Store(tmp_path)) as again:
        assert done is not None and done.status == "completed" and again.page("me", None, 9, True) == [done]
        assert again.get("a", "other") is None


def test_without_a_key_only_this_machine(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        gate.check_host(host, [])
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="key"):
            gate.check_host(host, [])
        gate.check_host(host, [b"digest"])
    (tmp_path / "short").write_text("short\n")
    with pytest.raises(ConfigError, match="16 characters"):
        gate.read_keys(tmp_path / "short")
