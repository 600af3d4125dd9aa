# SPDX-License-Identifier: Apache-2.0
"""The page of a server, in a real browser: start, watch, steer, fork, pause, go back, leave."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from helpers.server import running
from helpers.waiting import PATIENCE, eventually
from test_steered import CAPTION, write_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def ready(url: str) -> dict[str, int]:
    found: dict[str, int] = json.load(urllib.request.urlopen(f"{url}/ready", timeout=PATIENCE))
    return found


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")


@needs_chromium
def test_the_page(tiny_model: Path, tmp_path: Path) -> None:
    from helpers.browser import opened

    assert CHROMIUM is not None
    with running(tiny_model, tmp_path / "data") as server, opened(CHROMIUM, tmp_path / "profile") as page:
        page.open(server.url)
        page.wait("document.querySelector('#model') && document.querySelector('#model').textContent")
        # So many steps that no machine ends it under the test. An endless one forgets frames to go back to.
        page.value("start.elements.num_frames.value = 1000; start.elements.num_inference_steps.value = 200")
        page.value("start.requestSubmit()")
        first = "document.querySelectorAll('article')[0]"
        picture = f"{first}.querySelector('canvas').toDataURL()"
        page.wait(f"{first} && {first}.querySelectorAll('.past button').length > 3")
        seen = page.value(picture)
        page.wait(f"{picture} !== {json.dumps(seen)}")
        assert page.value(f"document.activeElement === {first}"), "a new stream has the keyboard"
        hidden = "document.querySelector('.arrows').hidden"
        assert page.value(f"{first}.querySelector('.actions').hidden && {hidden}"), (
            "this model has no actions"
        )

        page.value(f"{first}.querySelector('.steer input').value = '1'")
        page.value(f"{first}.querySelector('.steer').requestSubmit()")
        page.wait("[...sessions][0].views.values().next().value.line.textContent.length > 0")

        page.key("f")
        page.wait("document.querySelectorAll('article').length === 2")
        fork = "document.querySelectorAll('article')[1]"
        page.wait(f"{fork}.querySelectorAll('.past button').length > 1")
        assert ready(server.url)["streams_running"] == 2

        page.value(f"{first}.focus()")
        page.key("p")
        page.wait(f"{first}.querySelector('.pause').textContent === 'Resume'")
        assert ready(server.url)["streams_running"] == 1
        page.key("p")
        page.wait(f"{first}.querySelector('.pause').textContent === 'Pause'")

        # The strip moves on by itself: the button is read and pressed in one breath, and what is added after
        # is kept.
        page.value(
            f"""(() => {{
                const strip = {first}.querySelector('.past'), button = strip.querySelector('button');
                window.target = Number(button.dataset.chunk);
                window.added = [];
                new MutationObserver((changes) => changes.forEach((change) => change.addedNodes.forEach(
                    (node) => added.push(Number(node.dataset.chunk))))).observe(strip, {{ childList: true }});
                button.click();
            }})()"""
        )
        page.wait("added.includes(target)")
        assert page.value("byId('message').textContent") == ""
        # /ready may say that a busy machine is not.
        assert [told for told in page.complaints if "/ready" not in told] == []

        page.open("about:blank")
        assert eventually(lambda: ready(server.url)["pages_held"] == 0)


@needs_chromium
def test_arrow_keys_steer_a_model_that_takes_actions(tmp_path: Path) -> None:
    from helpers.browser import opened

    assert CHROMIUM is not None
    folder = write_model(tmp_path / "shapes")
    with running(folder, tmp_path / "data") as server, opened(CHROMIUM, tmp_path / "profile") as page:
        page.open(server.url)
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # else nothing loses the focus
        page.wait("actions.length === 5 && !document.querySelector('.arrows').hidden")
        # Endless, so that no machine ends it under the test. All that the server says of the events is kept.
        page.value(
            f"""(() => {{
                window.receipts = [];
                window.applied = {{}};
                const receive = Session.prototype.receive, show = View.prototype.show;
                Session.prototype.receive = function (data) {{
                    if (!(data instanceof Blob) && JSON.parse(data).type === "session.interaction.queued")
                        receipts.push(JSON.parse(data));
                    return receive.call(this, data);
                }};
                View.prototype.show = function (picture, message) {{
                    const {{ chunk_index, applied_event_ids }} = message;
                    for (const event of applied_event_ids) applied[this.id + event] = chunk_index;
                    return show.call(this, picture, message);
                }};
                start.elements.prompt.value = {json.dumps(CAPTION)};
                start.elements.num_frames.value = "";
                start.requestSubmit();
            }})()"""
        )
        first = "document.querySelectorAll('article')[0]"
        page.wait(f"{first} && {first}.querySelectorAll('.past button').length > 3")
        assert page.value(f"document.activeElement === {first}")

        def held() -> str:
            """The buttons that are shown as held."""
            pressed = f"[...{first}.querySelectorAll('.actions [aria-pressed=true]')]"
            return str(page.value(f"{pressed}.map((button) => button.ariaLabel).join()"))

        def key(kind: str, name: str) -> None:
            page.call("Input.dispatchKeyEvent", type=kind, key=name)

        assert held() == ""
        key("keyDown", "ArrowLeft")
        key("keyDown", "ArrowLeft")  # as a keyboard repeats it
        assert held() == "left"
        key("keyUp", "ArrowLeft")
        assert held() == ""
        page.wait("receipts.length === 2")
        page.value(f"{first}.querySelector('[aria-label=up]').click()")
        assert held() == "up"
        page.value(f"{first}.querySelector('.fork').click()")
        fork = "document.querySelectorAll('article')[1]"
        page.wait(f"{fork} && {fork}.querySelector('[aria-label=up]').ariaPressed === 'true'")
        page.value(f"{first}.querySelector('[aria-label=up]').click()")
        assert held() == ""
        key("keyDown", "ArrowRight")
        page.value(f"{fork}.focus()")  # a key that comes up elsewhere is not held for ever
        assert held() == ""
        page.wait("receipts.length === 6")
        # Each piece that a receipt names is the first one that shows the event.
        page.wait("receipts.every((own) => own.stream_id + own.event_id in applied)")
        firsts = page.value("receipts.map((own) => [own.first_chunk, applied[own.stream_id + own.event_id]])")
        assert all(promised == shown for promised, shown in firsts) and len(firsts) == 6, firsts
        assert page.value("byId('message').textContent") == ""
        assert [said for said in page.complaints if "/ready" not in said] == []
