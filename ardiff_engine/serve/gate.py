# SPDX-License-Identifier: Apache-2.0
"""Who may come in: keys, hosts and origins, sizes of bodies, a number for every request.

Keys are compared as digests, in constant time, and all of them, whichever fits. Neither they nor the query of
an address reach a log. A server without keys answers only to names of this machine: otherwise a page of
another origin could reach it through the browser of whoever runs it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ardiff_engine.errors import ConfigError
from ardiff_engine.serve.errors import ApiError

log = logging.getLogger("ardiff_engine.serve")
OPEN = ("/", "/page.css", "/page.js", "/health", "/ready")
"""Paths that need no key."""
PROTOCOL = "ardiff"
KEY_PROTOCOL = "openai-insecure-api-key."
"""Browsers can send a key with a WebSocket in no other way."""
LOCAL = "local"
DENIED = 4401
SAFE = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def read_keys(path: Path) -> list[bytes]:
    """Digests of the keys in a file, one a line. ConfigError: no key, or one that is too short to be one."""
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file {path}: it cannot be read as ASCII text ({error}).") from error
    if not lines or min(map(len, lines)) < 16:
        raise ConfigError(f"--api-key-file {path}: expected keys of at least 16 characters, one a line.")
    return [key_digest(line) for line in lines]


def check_host(host: str, keys: Iterable[bytes]) -> None:
    """ConfigError: an address that others can reach, without a key."""
    if not list(keys) and not is_local(host):
        raise ConfigError(
            f"--host {host}: others could reach the server and no key is asked for. Give --api-key-file, or "
            "leave --host at 127.0.0.1."
        )


def is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """Around the application. It writes the owner of a request to scope["state"]["owner"]."""

    def __init__(self, app: ASGIApp, keys: list[bytes], most_bytes: int) -> None:
        self._app, self._keys, self._most = app, keys, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        number, began, status = f"req_{secrets.token_hex(8)}", time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SAFE.items(), (b"x-request-id", number.encode())]
            await send(message)

        try:
            owner = self._checked(scope, headers)
        except ApiError as error:
            status = error.status
            await _refuse(scope, receive, noted, error)
        else:
            scope.setdefault("state", {})
            scope["state"] |= {"owner": owner, "number": number}
            await self._app(scope, self._limited(receive), noted)
        finally:
            seconds = time.perf_counter() - began
            kind = scope.get("method", "WS")
            log.debug("%s %s %s %d %.3f s", number, kind, ascii(scope["path"])[1:-1], status, seconds)

    def _checked(self, scope: Scope, headers: dict[bytes, str]) -> str:
        host = headers.get(b"host", "")
        if not self._keys and not is_local(_parts(f"//{host}").hostname or ""):
            raise ApiError(403, "wrong_host", "the Host header", f"{host!r:.80}", "this machine's own name")
        origin = headers.get(b"origin")
        if origin is not None and _parts(origin).netloc != host:
            raise ApiError(403, "wrong_origin", "the Origin header", f"{origin!r:.80}", f"{host!r:.80}")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._most:
            raise too_large(length[:20], self._most)
        if not self._keys:
            return LOCAL
        if scope["path"] in OPEN:
            return ""
        key = headers.get(b"authorization", "").removeprefix("Bearer ")
        for offered in headers.get(b"sec-websocket-protocol", "").split(","):
            if offered.strip().startswith(KEY_PROTOCOL):
                key = offered.strip().removeprefix(KEY_PROTOCOL)
        digest, found = key_digest(key), False
        for own in self._keys:
            found |= hmac.compare_digest(digest, own)
        if not found:
            fix = "Send it as Authorization: Bearer KEY."
            raise ApiError(
                401, "invalid_api_key", "the key", "none, or a wrong one", "a key of this server", fix
            )
        return digest.hex()[:16]

    def _limited(self, receive: Receive) -> Receive:
        """A body without a length, or longer than it said, ends at the limit too."""
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._most:
                    raise too_large(f"{taken} bytes", self._most)
            return message

        return limited


def too_large(got: str, most: int) -> ApiError:
    return ApiError(413, "too_large", "the body of the request", got, f"at most {most} bytes", "Send less.")


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": DENIED, "reason": error.code})
        return
    body = json.dumps(error.body).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _parts(address: str) -> SplitResult:
    """Empty ones of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def key_digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
