# SPDX-License-Identifier: Apache-2.0
"""What a client is told when something goes wrong: what, got, expected and fix as JSON, never a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ardiff_engine.errors import (
    ArdiffError,
    EngineBusyError,
    OutOfMemoryError,
    OutOfPagesError,
    PoolTooSmallError,
)

RETRY_SECONDS = 5
LONGEST = 500


@dataclass(eq=False)
class ApiError(Exception):
    """status: of HTTP. code: for programs. param: the field that is wrong. retry_after: seconds."""

    status: int
    code: str
    what: str
    got: str = ""
    expected: str = ""
    fix: str = ""
    param: str | None = None
    retry_after: int | None = None

    @property
    def message(self) -> str:
        parts = [f"got {self.got}" * bool(self.got), f"expected {self.expected}" * bool(self.expected)]
        facts = ", ".join(part for part in parts if part)
        said = f"{self.what}: {facts}" if facts else self.what.removesuffix(".")
        return f"{said}.{f' {self.fix}' if self.fix else ''}"

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape, with our four fields beside theirs."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "code": self.code,
                "param": self.param,
                "what": self.what,
                "got": self.got,
                "expected": self.expected,
                "fix": self.fix,
            }
        }


def invalid(what: str, got: object, expected: str, fix: str, param: str | None = None) -> ApiError:
    """A request that cannot be served as it is."""
    return ApiError(400, "invalid_value", what, f"{got!r:.100}", expected, fix, param)


def not_found(kind: str, name: str) -> ApiError:
    fix = "It may have been deleted, or belong to another key."
    return ApiError(404, "not_found", f"no such {kind}", f"{name!r:.80}", "an id that this server gave", fix)


def busy(what: str, got: str, expected: str) -> ApiError:
    return ApiError(429, "busy", what, got, expected, "Try again later.", retry_after=RETRY_SECONDS)


def api_error(error: Exception) -> ApiError:
    """Of anything that was raised. What is no typed error of ours is a fault of ours, and its text stays
    here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PoolTooSmallError):
        return ApiError(400, "too_large_for_server", str(error)[:LONGEST])
    if isinstance(error, OutOfPagesError | OutOfMemoryError | EngineBusyError):
        return ApiError(429, "busy", str(error)[:LONGEST], retry_after=RETRY_SECONDS)
    # A wrapper of the very root may hold any text, and errors of files hold paths of this machine.
    if isinstance(error, ArdiffError) and type(error) is not ArdiffError and not isinstance(error, OSError):
        return ApiError(400, "invalid_value", str(error)[:LONGEST])
    fix = "The log of the server says more, under this request's id."
    return ApiError(500, "server_error", "a fault of the server", fix=fix)
