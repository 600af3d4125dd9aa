# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over its debugging protocol."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.processes import started
from helpers.waiting import PATIENCE, eventually
from websockets.sync.client import ClientConnection, connect

BLANK = "about:blank"


class Browser:
    """One tab. complaints: what the page, or the browser about it, wrote to the console."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(message["params"])[:500])

    def open(self, address: str) -> None:
        """Until it is loaded."""
        self.call("Page.navigate", url=address)

        def loaded() -> bool:
            with contextlib.suppress(AssertionError):  # one page has gone, the other one has not come
                return bool(self.value(f"document.readyState === 'complete' && location != {BLANK!r}"))
            return False

        assert address == BLANK or eventually(loaded), address

    def value(self, expression: str) -> Any:
        """Of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """What it is once it is true. The page moves on: it may be false again at the next look."""
        found: list[Any] = []
        assert eventually(lambda: found.append(self.value(expression)) or found[-1]), (
            expression,
            self.complaints,
        )
        return found[-1]

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")


@contextlib.contextmanager
def opened(program: str, profile: Path) -> Iterator[Browser]:
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={profile}", "--window-size=1200,900", BLANK]
    log = profile.with_suffix(".log")
    with open(log, "w") as errors, started(command, stderr=errors) as process:

        def host() -> str:
            """Where it listens; empty: not yet."""
            assert process.poll() is None, log.read_text()
            lines = [line for line in log.read_text().splitlines(True) if "DevTools listening" in line]
            return lines[0].split("ws://")[1].split("/")[0] if lines and lines[0].endswith("\n") else ""

        def tabs() -> list[str]:
            listed = json.load(urllib.request.urlopen(f"http://{host()}/json", timeout=PATIENCE))
            return [tab["webSocketDebuggerUrl"] for tab in listed if tab["type"] == "page"]

        assert eventually(host) and eventually(tabs), log.read_text()
        # A browser that is slow is not one that has gone: it is asked for no pings.
        with connect(tabs()[0], max_size=None, open_timeout=PATIENCE, ping_interval=None) as socket:
            yield Browser(socket)
        process.terminate()
        process.wait(PATIENCE)
