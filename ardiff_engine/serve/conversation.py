# SPDX-License-Identifier: Apache-2.0
"""What a client of a live session says: JSON messages with a `type`, answered one after the other; what is
wrong with one is its answer. The start, the end and coming back are the same whoever makes the frames."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from abc import abstractmethod
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ardiff_engine.serve.connected import NORMAL, Connected
from ardiff_engine.serve.errors import api_error, invalid, not_found
from ardiff_engine.serve.serving import Serving
from ardiff_engine.serve.wish import Wish, read_wish

ACTS = (
    "session.start",
    "session.interaction",
    "session.fork",
    "session.rollback",
    "session.suspend",
    "session.resume",
    "session.cancel",
    "session.ping",
)
ENDS = ("session.reconnect", "session.stop")
"""Messages after which no other one is answered here."""


class Conversation(Connected):
    """opened: whether it has a stream, or had one. secret: of a session that its client can come back to."""

    def __init__(self, service: Serving, socket: WebSocket, owner: str) -> None:
        super().__init__(service, socket, owner)
        self.opened = False
        self.secret = ""

    @abstractmethod
    async def _act(self, kind: str, event: str | None, values: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a message, one of ACTS; None: it comes later. ApiError or a typed error: what is
        wrong with it."""

    async def _answered(self, received: Any) -> bool:
        """Whether that was the last one."""
        event: Any = None
        try:
            text = received.get("text")
            if text is None or len(text) > self._service.limits.message:
                got = "bytes" if text is None else f"{len(text)} characters"
                raise invalid(
                    "a message", got, f"JSON of at most {self._service.limits.message} characters", ""
                )
            values = _parsed(text)
            event = values.pop("event_id", None)
            if event is not None and not (isinstance(event, str) and len(event) <= 100):
                event, got = None, event
                raise invalid("event_id", got, "a text of at most 100 characters", "Change it.", "event_id")
            kind = values.pop("type", None)
            if kind == "session.stop":
                await self._end(None, "", NORMAL)
                return True
            if kind == "session.reconnect":
                self._heir = self._known(values)
                return True
            if kind not in ACTS:
                raise invalid("type", kind, ", ".join([*ACTS, *ENDS]), "", "type")
            answer = await self._act(kind, event, values)
            if answer is not None:
                await self._send({**answer, **({} if event is None else {"event_id": event})}, None)
        except (WebSocketDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            found = api_error(error)
            if found.status == 500:
                self._service.log.exception("a message of a live session failed")
            body = {"type": "error", **found.body, **({} if event is None else {"event_id": event})}
            await self._send(body, None)
        return False

    def _asked(self, values: dict[str, Any]) -> tuple[Wish, bool]:
        """The stream of a session.start, and whether the client may come back; checked."""
        if self.opened:
            fix = "Open another connection."
            raise invalid("session.start", "a second one", "one for each connection", fix)
        kept = values.pop("resumable", False)
        if not isinstance(kept, bool):
            raise invalid("resumable", kept, "true or false", "Leave it out.", "resumable")
        wish = read_wish(values, self._service.limits, live=True)
        self._service.check_model(wish.model)
        self._service.check_owner(self._owner)
        self._started = True
        return wish, kept

    def _may_come_back(self) -> dict[str, Any]:
        """From now on, by what he is told here."""
        self._line.kept, self.secret = True, secrets.token_hex(16)
        return {"secret": self.secret, "resume_seconds": self._service.limits.resume}

    def _known(self, values: dict[str, Any]) -> tuple[Conversation, int]:
        """The session that a client comes back to, and the last message that he has."""
        secret, after = values.get("secret"), values.get("sequence")
        if self.opened:
            raise invalid("session.reconnect", "a session here", "it as the first message", "")
        if isinstance(after, bool) or not isinstance(after, int):
            raise invalid("sequence", after, "the number of the last message", "", "sequence")
        name = secret.encode() if isinstance(secret, str) and secret.isascii() else b""
        for session in self._service.sessions:
            if isinstance(session, Conversation) and session.owner == self._owner and session.secret:
                if hmac.compare_digest(session.secret.encode(), name):
                    session._line.check(after)
                    return session, after
        raise not_found("session", "the secret")

    async def _send(self, message: dict[str, Any], data: bytes | None) -> None:
        await self._line.send(message, data)


def _parsed(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("a message", text[:60], "JSON", "", None) from None
    if not isinstance(values, dict):
        raise invalid("a message", text[:60], "a JSON object with a type", "", None)
    return values
