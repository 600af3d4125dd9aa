# SPDX-License-Identifier: Apache-2.0
"""The web application: OpenAI's videos, the WebSocket, health, metrics, the page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from ardiff_engine.errors import ArdiffError
from ardiff_engine.serve.errors import ApiError, api_error, invalid, not_found
from ardiff_engine.serve.gate import PROTOCOL, Gate
from ardiff_engine.serve.serving import Making, Serving, Session
from ardiff_engine.serve.store import Job
from ardiff_engine.serve.wish import no_pictures, read_wish, wish_schema
from ardiff_engine.version import __version__

PAGE = Path(__file__).parent / "page"
FORM = "application/x-www-form-urlencoded"
READY_SECONDS = 10.0
MOST_LISTED = 100
STARTED = int(time.time())


def create_app(service: Serving, keys: list[bytes], connect: Callable[[WebSocket, str], Session]) -> FastAPI:
    """keys: digests; none: whoever reaches it may use it. connect: a session for an owner."""
    app = FastAPI(title="ardiff-engine", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, keys=keys, most_bytes=service.limits.body)
    _errors(app, service)
    _videos(app, service)
    _watching(app, service)
    _page(app)

    @app.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(PROTOCOL if PROTOCOL in offered else None)
        session = connect(socket, socket.state.owner)
        service.sessions.add(session)
        try:
            await session.serve()
        finally:
            service.sessions.discard(session)

    return app


def _errors(app: FastAPI, service: Serving) -> None:
    async def told(request: Request, error: Exception) -> Response:
        found = api_error(error)
        if found.status == 500:
            service.log.error("%s failed", request.state.number, exc_info=error)
        headers = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
        return JSONResponse(found.body, found.status, headers)

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        found = ApiError(error.status_code, code, f"{request.method} of this path: {error.detail}")
        return JSONResponse(found.body, error.status_code, error.headers)

    for kind in (ApiError, ArdiffError, Exception):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(HTTPException, plain)


def _videos(app: FastAPI, service: Serving) -> None:
    store, jobs = service.store, service.jobs

    def found(request: Request, video: str) -> Job:
        job = store.get(video, request.state.owner)
        if job is None:
            raise not_found("video", video)
        return job

    async def created(request: Request, awaited: bool = False) -> Job:
        wish = read_wish(await _fields(request), service.limits)
        service.check_model(wish.model)
        service.check_owner(request.state.owner)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(service.callers, jobs.create, wish, request.state.owner, awaited)

    kinds = ("application/json", "multipart/form-data")
    body = {"requestBody": {"content": {kind: {"schema": wish_schema(service.limits)} for kind in kinds}}}
    query = [
        {"name": "after", "in": "query", "schema": {"type": "string"}},
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}},
    ]

    @app.post("/v1/videos", openapi_extra=body)
    async def create(request: Request) -> dict[str, Any]:
        return video_object(service, await created(request))

    @app.post("/v1/videos/sync", openapi_extra=body)
    async def create_and_wait(request: Request) -> Response:
        """The file itself. A client that leaves cancels it."""
        job = await created(request, awaited=True)
        if (live := jobs.live(job.id)) is not None and not await _ends(live, request):
            await asyncio.to_thread(jobs.remove, job.id)
            return Response(status_code=499)
        return await content(request, job.id)

    # What is answered from memory needs no thread, and no second look at what it is made of.
    @app.get("/v1/videos", openapi_extra={"parameters": query})
    async def listed(request: Request) -> JSONResponse:
        query = request.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= MOST_LISTED):
            raise invalid("limit", limit, f"1 to {MOST_LISTED}", "Change it, or leave it out.", "limit")
        if order not in ("asc", "desc"):
            raise invalid("order", order, "asc or desc", "Change it, or leave it out.", "order")
        after = query.get("after")
        if after is not None:
            found(request, after)
        page = store.page(request.state.owner, after, int(limit) + 1, order == "desc")
        data = [video_object(service, job) for job in page[: int(limit)]]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        more = len(page) > int(limit)
        return JSONResponse({"object": "list", "data": data, **ends, "has_more": more})

    @app.get("/v1/videos/{video}")
    async def retrieve(request: Request, video: str) -> JSONResponse:
        return JSONResponse(video_object(service, found(request, video)))

    @app.get("/v1/videos/{video}/content")
    async def content(request: Request, video: str) -> Response:
        job = found(request, video)
        if job.status != "completed":
            why = job.error or "it is not finished"
            raise ApiError(
                409, "not_ready", f"the content of {job.id}", job.status, "completed", f"Here: {why}."
            )
        return FileResponse(store.file(job.id), media_type="video/mp4", filename=f"{job.id}.mp4")

    @app.delete("/v1/videos/{video}")
    def delete(request: Request, video: str) -> dict[str, Any]:
        job = found(request, video)
        jobs.remove(job.id)
        return {"id": job.id, "object": "video.deleted", "deleted": True}


def _watching(app: FastAPI, service: Serving) -> None:
    registry = CollectorRegistry()
    kept = service.register(registry)
    waiting = Gauge("ardiff_serve_videos", "Videos that are queued or being made.", registry=registry)
    waiting.set_function(lambda: service.jobs.count)
    sessions = Gauge("ardiff_serve_sessions", "Open connections with live streams.", registry=registry)
    sessions.set_function(lambda: len(service.sessions))
    answers = Counter("ardiff_serve_scrapes", "Times that these metrics were read.", registry=registry)
    app.state.collector = kept

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        own = {"id": service.name, "object": "model", "created": STARTED, "owned_by": "ardiff-engine"}
        return {"object": "list", "data": [{**own, "takes": service.takes, "actions": service.actions}]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        first: dict[str, Any] = (await models())["data"][0]
        return first

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The process lives."""
        return {"status": "ok", "version": __version__}

    @app.get("/ready")
    def ready() -> Response:
        """Passes end, with pages and streams."""
        facts = service.ready(READY_SECONDS)
        if facts is None:
            found = ApiError(503, "not_ready", f"no pass has ended for {READY_SECONDS:.0f} s")
            return JSONResponse(found.body, 503)
        return JSONResponse({"status": "ready", **facts})

    @app.get("/metrics")
    def metrics() -> Response:
        answers.inc()
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _page(app: FastAPI) -> None:
    for path, name, kind in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        app.add_route(path, _file(PAGE / name, kind), include_in_schema=False)


async def _ends(video: Making, request: Request) -> bool:
    """False: the client has gone before it ended."""
    ended, gone = asyncio.wrap_future(video.ended), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()  # not `ended`, which would cancel what it wraps
    return ended.done()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _file(path: Path, kind: str) -> Callable[[Request], Response]:
    return lambda _request: FileResponse(path, media_type=kind)


async def _fields(request: Request) -> Mapping[str, Any]:
    """Of JSON or of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # curl -d calls everything a form.
    as_json = kind == FORM and (await request.body()).lstrip().startswith(b"{")
    if kind in ("multipart/form-data", FORM) and not as_json:
        async with request.form(max_files=1, max_fields=64, max_part_size=1 << 16) as form:
            fields = dict(form)
        for name, value in fields.items():
            if not isinstance(value, str):
                raise no_pictures(name)
        return fields
    try:
        values = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        raise invalid("the body", f"{kind or 'no type'}", "JSON or a form", "Check what is sent.") from None
    if not isinstance(values, dict):
        raise invalid("the body", type(values).__name__, "an object", "Send its fields by name.")
    return values


def video_object(service: Serving, job: Job) -> dict[str, Any]:
    """As OpenAI has it, and what the video was made with."""
    live, wish = service.jobs.live(job.id), job.request["wish"]
    made = {**wish, **job.request}
    status = job.status
    if live is not None and status == "queued" and live.started:
        status = "in_progress"
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": status,
        "progress": 100 if status == "completed" else live.progress if live is not None else 0,
        "created_at": job.created_at,
        "completed_at": job.completed_at,
        "expires_at": None,
        "prompt": wish["prompt"],
        "size": "x".join(map(str, wish["size"])),
        "seconds": f"{wish['num_frames'] / wish['fps']:g}",
        "remixed_from_video_id": None,
        "error": None if job.error is None else {"code": "video_failed", "message": job.error},
        **{name: made.get(name) for name in EXTRA},
    }


EXTRA = (
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "lag",
    "class_id",
    "actions",
    "seed",
    "system",
)
