# SPDX-License-Identifier: Apache-2.0
"""A path is the name of a file: no address, no playlist, no pipe, no device is opened for it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from media_files import shade_numbers, shades, write_film

from ardiff_engine.data.buckets import Bucket
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import MediaError
from ardiff_engine.media import export_video, open_writer, read_video


@contextlib.contextmanager
def _a_server() -> Any:
    """A port, and a list that grows when somebody connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list[object] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, address = server.accept()
                    seen.append(address)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)


NAMES = [
    "12:30.mp4",
    "concat:a.mp4",
    "concat:a.mp4|b.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "pipe:0.mp4",
    "fd:.mp4",
    "file:a.mp4",
    "-i.mp4",
    "%d.mp4",
    "100%.mp4",
    "a*[0-9]?.mp4",
    " leading and trailing .mp4",
    "zwei Wörter – 動画.mp4",
    "no suffix",
    "crypto+http:x.mp4",
    "new\nline.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_is_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_film(tmp_path / "a.mp4", shades(5)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, Path(name), tmp_path / name):
        assert shade_numbers(read_video(path)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".mp4")])
def test_any_name_can_be_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    export_video(shades(3), name)
    with open_writer(f"2{name}") as writer:
        for frame in shades(3):
            writer.write(frame)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"2{name}"])
    assert len(read_video(name)) == len(read_video(f"2{name}")) == 3


@pytest.mark.parametrize("scheme", ["http", "https", "tcp", "rtmp", "rtsp", "ftp", "udp"])
def test_a_path_that_looks_like_an_address_makes_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with _a_server() as (port, seen):
        path = Path(f"{scheme}:/127.0.0.1:{port}/z.mp4")
        with pytest.raises(MediaError):
            read_video(f"{scheme}://127.0.0.1:{port}/z.mp4")
        path.parent.mkdir(parents=True)
        write_film(tmp_path / "z.mp4", shades(3)).rename(path)
        assert len(read_video(path)) == len(read_video(str(path))) == 3
        path.write_bytes(f"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n".encode())
        with pytest.raises(MediaError):
            read_video(path)
    assert seen == []


@pytest.mark.parametrize("name", ["x.m3u8", "x.mp4", "x.ffconcat", "x.txt", "x.mpd", "x.sdp", "x%d.png"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'a.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
        "<?xml version='1.0'?><MPD><Period><BaseURL>a.mp4</BaseURL></Period></MPD>",
    ],
)
def test_playlists_are_no_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    write_film(tmp_path / "a.mp4", shades(3))
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError, match="no kind of video"):
        read_video(name)


def test_pipes_devices_folders_and_sockets_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.mp4"))
    for path in [*sorted(tmp_path.iterdir()), "/dev/zero", "/dev/tty", "/dev/null", "/proc/self/mem", "/"]:
        with pytest.raises(MediaError):
            read_video(path)
    server.close()
    frames = tmp_path / "frames"
    frames.mkdir()
    os.mkfifo(frames / "1.png")
    with pytest.raises(MediaError, match="no regular file"):
        read_video(frames)
    with pytest.raises(MediaError, match="no usable video"):
        VideoFolder(tmp_path, [Bucket(8, 8, 2)], held_out=1).clips([0])


@pytest.mark.parametrize("path", ["", "a\0b.mp4", "x" * 300 + ".mp4", "\ud800.mp4", "none.mp4", "none/x.mp4"])
def test_names_that_no_file_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MediaError):
        read_video(path)
    if path and not path.startswith("none"):
        with pytest.raises(MediaError):
            export_video(shades(2), path)
        with pytest.raises(MediaError):
            open_writer(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["pipe.mp4", "pipe.gif", "pipe"])
def test_pipes_are_not_written_into(tmp_path: Path, target: str) -> None:
    os.mkfifo(tmp_path / target)
    with pytest.raises(MediaError):
        export_video(shades(2), tmp_path / target)
    with pytest.raises(MediaError):
        open_writer(tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == [target]
