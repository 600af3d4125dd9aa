# SPDX-License-Identifier: Apache-2.0
"""Videos survive the way to the disk and back; what is no video is refused before anything is touched."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ardiff_engine.errors import MediaError
from ardiff_engine.media import as_frames, check_target, contact_sheet, export_video, open_writer, read_video
from ardiff_engine.media import export as export_module


def moving_square(frames: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """A red square on blue that moves two pixels per frame, so every frame differs."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 2] = 160
    for index in range(frames):
        video[index, 8:24, 2 * index : 2 * index + 16] = (220, 40, 30)
    return video


@pytest.mark.parametrize("name", ["clip.webp", "clip_folder"])
def test_lossless_kinds_return_the_same_pixels(tmp_path: Path, name: str) -> None:
    video = moving_square()
    assert export_video(video, tmp_path / name, fps=8) == tmp_path / name
    np.testing.assert_array_equal(read_video(tmp_path / name), video)


def test_gif_returns_the_same_frames_up_to_its_palette(tmp_path: Path) -> None:
    video = moving_square()
    export_video(video, tmp_path / "clip.gif", fps=10)
    back = read_video(tmp_path / "clip.gif")
    assert back.shape == video.shape
    assert np.abs(back.astype(int) - video).max() <= 4


@pytest.mark.parametrize("growing", [False, True])
def test_mp4_returns_the_same_frames_up_to_compression(tmp_path: Path, growing: bool) -> None:
    video = moving_square(frames=20).repeat(4, axis=1).repeat(4, axis=2)
    path = tmp_path / "clip.mp4"
    if growing:
        with open_writer(path, fps=8) as writer:
            for frame in video:
                writer.write(frame)
        assert writer.count == 20
    else:
        export_video(video, path, fps=8)
    back = read_video(path)
    assert back.shape == video.shape
    # A wrong matrix (BT.601 for BT.709) moves this red by more than 10, a wrong range by more than 15.
    inside = back[0, 40:88, 8:56].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(inside, (220, 40, 30), atol=5)
    assert np.abs(back.astype(float) - video).mean() < 3


def test_mp4_keeps_the_frame_rate(tmp_path: Path) -> None:
    import av

    export_video(moving_square(), tmp_path / "clip.mp4", fps=12.5)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(12.5)
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


def test_mp4_pads_odd_sizes_with_the_edge(tmp_path: Path) -> None:
    video = np.full((4, 33, 17, 3), 200, np.uint8)
    export_video(video, tmp_path / "odd.mp4")
    back = read_video(tmp_path / "odd.mp4")
    assert back.shape == (4, 34, 18, 3)
    assert np.abs(back.astype(int) - 200).max() <= 4


@pytest.mark.parametrize("name", ["still.webp", "still.gif", "still.mp4", "still"])
def test_equal_neighbours_are_not_lost(tmp_path: Path, name: str) -> None:
    video = moving_square(6)[[0, 1, 1, 1, 2, 3, 3, 4]]
    export_video(video, tmp_path / name, fps=8)
    back = read_video(tmp_path / name)
    assert len(back) == 8
    np.testing.assert_array_equal(
        np.argmin(np.abs(back[:, None].astype(int) - moving_square(6)[None]).sum((2, 3, 4)), 1),
        [0, 1, 1, 1, 2, 3, 3, 4],
    )


@pytest.mark.parametrize("name", ["still.webp", "still.gif", "still.mp4", "still"])
def test_a_still_video_keeps_its_length(tmp_path: Path, name: str) -> None:
    export_video(moving_square(1).repeat(7, axis=0), tmp_path / name, fps=8)
    assert len(read_video(tmp_path / name)) == 7
    assert len(read_video(tmp_path / name, max_frames=3)) == 3


def test_animations_of_others_are_read_at_the_rate_of_their_shortest_picture(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in moving_square(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 100])
    back = read_video(tmp_path / "a.gif")
    assert len(back) == 5
    np.testing.assert_array_equal(back[1], back[3])


def test_scale_turns_pixels_into_squares(tmp_path: Path) -> None:
    video = moving_square(3)
    export_video(video, tmp_path / "big.webp", scale=3)
    back = read_video(tmp_path / "big.webp")
    assert back.shape == (3, 96, 144, 3)
    np.testing.assert_array_equal(back[:, 1::3, 1::3], video)
    np.testing.assert_array_equal(back[:, 2::3, 0::3], video)


def test_as_frames_converts_floats_tensors_and_grey() -> None:
    grey = torch.tensor([0.0, 0.5, 1.0, 1.5]).reshape(1, 2, 2, 1)
    expected = np.array([0, 128, 255, 255], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(as_frames(grey), expected)
    np.testing.assert_array_equal(as_frames(grey.half().requires_grad_()), expected)
    assert as_frames(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)).flags.c_contiguous


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((4, 3, 8, 8), np.uint8), r"\[4, 3, 8, 8\].*channels last"),
        (np.zeros((2, 4, 8, 8, 3), np.uint8), "batch axis"),
        (np.zeros((0, 8, 8, 3), np.uint8), "empty"),
        (np.zeros((1, 8, 8, 3), np.int64), "int64"),
        (np.full((1, 8, 8, 3), np.nan), "NaN"),
        (np.linspace(0, 255, 192).reshape(1, 8, 8, 3), "from 0 to 255.*by 255"),
        (np.linspace(-1, 1, 192).reshape(1, 8, 8, 3), r"from -1 to 1.*\(x \+ 1\) / 2"),
    ],
)
def test_what_is_not_a_video_is_refused(tmp_path: Path, frames: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        export_video(frames, tmp_path / "x.webp")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.mkv", "x.png", "x.mp4.bak"])
def test_unknown_suffix_names_the_supported_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match=r"\.mp4, \.webp, \.gif"):
        export_video(moving_square(2), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fps", "name"), [(0, "x.mp4"), (-1, "x.webp"), (float("nan"), "x"), (60, "x.gif")])
def test_fps_out_of_range(tmp_path: Path, fps: float, name: str) -> None:
    with pytest.raises(MediaError, match="fps"):
        export_video(moving_square(2), tmp_path / name, fps=fps)


def test_missing_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match="pip install av"):
        check_target(tmp_path / "x.mp4")
    export_video(moving_square(2), tmp_path / "x.webp")


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(MediaError, match="notes.txt"):
        export_video(moving_square(2), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_of_frames_is_replaced_whole(tmp_path: Path) -> None:
    export_video(moving_square(9), tmp_path / "out")
    export_video(moving_square(4), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"frame_{i:05d}.png" for i in range(4)]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif", "clip"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    export_video(moving_square(3), path)
    before = read_video(path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(export_module.Mp4Encoder, "write", full)
    with pytest.raises(MediaError, match="No space left"):
        export_video(moving_square(7), path)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_video(path), before)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="writing"):
        export_video(moving_square(2), tmp_path / "file" / "clip.webp")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, name: str, part: float) -> None:
    rng = np.random.default_rng(0)
    export_video(rng.integers(0, 255, (10, 48, 48, 3), np.uint8), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_video(tmp_path / name)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.mkv", "clip"])
def test_files_that_are_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is text, not a video" * 40)
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_video(tmp_path / name)


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no video"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="without .png"):
        read_video(tmp_path / "empty")


def test_folder_order_is_numeric_and_sizes_must_agree(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"shot_{number}.png")
    np.testing.assert_array_equal(read_video(tmp_path)[:, 0, 0, 0], [2, 9, 10])
    Image.new("RGB", (5, 4)).save(tmp_path / "shot_11.png")
    with pytest.raises(MediaError, match="shot_11.png"):
        read_video(tmp_path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webp", "clip.gif", "clip"])
def test_max_frames_reads_the_first(tmp_path: Path, name: str) -> None:
    export_video(moving_square(10), tmp_path / name)
    whole = read_video(tmp_path / name)
    np.testing.assert_array_equal(read_video(tmp_path / name, max_frames=4), whole[:4])


def test_a_growing_mp4_can_be_read_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "live.mp4"
    with open_writer(path, fps=4, scale=2) as writer:
        for frame in moving_square(10):
            writer.write(frame)
        seen = read_video(path)
        assert len(seen) >= 9
        assert seen.shape[1:] == (64, 96, 3)
    assert len(read_video(path)) == 10


def test_a_growing_folder_holds_every_written_frame(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "frame_00007.png").write_bytes(b"from an older run")
    with open_writer(tmp_path / "live") as writer:
        for count, frame in enumerate(moving_square(3), start=1):
            writer.write(frame)
            assert len(read_video(tmp_path / "live")) == count


def test_growing_refuses_kinds_that_cannot_grow_and_frames_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot grow"):
        open_writer(tmp_path / "x.gif")
    with open_writer(tmp_path / "x.mp4") as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(MediaError, match="does not fit"):
            writer.write(np.zeros((8, 10, 3), np.uint8))


def test_contact_sheet_shows_each_row_and_keeps_pixels(tmp_path: Path) -> None:
    red = np.zeros((40, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    green = np.zeros((3, 64, 64, 3), np.uint8)
    green[..., 1] = 255
    path = contact_sheet(
        [red, green], ["red, 40 frames", "green"], tmp_path / "sheet.png", columns=5, title="colours"
    )
    page = np.asarray(Image.open(path))
    assert (page == (255, 0, 0)).all(-1).sum() == 5 * 64 * 64
    assert (page == (0, 255, 0)).all(-1).sum() == 3 * 64 * 64


def test_contact_sheet_refuses_mismatched_labels_and_suffixes(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="label"):
        contact_sheet([moving_square(2)], [], tmp_path / "sheet.png")
    with pytest.raises(MediaError, match="picture"):
        contact_sheet([moving_square(2)], ["a"], tmp_path / "sheet.bmp")


@pytest.mark.parametrize("name", ["live.mp4", "live"])
def test_the_old_video_stays_until_the_first_new_frame(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    export_video(moving_square(5), path)
    with open_writer(path):
        pass
    assert len(read_video(path)) == 5
    with open_writer(path) as writer, pytest.raises(MediaError):
        writer.write(np.full((8, 8, 3), np.nan))
    assert len(read_video(path)) == 5
    with open_writer(path) as writer:
        writer.write(moving_square(1)[0])
    assert len(read_video(path)) == 1


def test_a_folder_whose_first_new_frame_cannot_be_written_keeps_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_video(moving_square(5), tmp_path / "live")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with open_writer(tmp_path / "live") as writer, pytest.raises(MediaError, match="No space left"):
        writer.write(moving_square(1)[0])
    np.testing.assert_array_equal(read_video(tmp_path / "live"), moving_square(5))


def test_writers_take_pil_pictures(tmp_path: Path) -> None:
    with open_writer(tmp_path / "live") as writer:
        for frame in moving_square(3):
            writer.write(Image.fromarray(frame))
    np.testing.assert_array_equal(read_video(tmp_path / "live"), moving_square(3))
    export_video([Image.fromarray(frame) for frame in moving_square(3)], tmp_path / "x.webp")
    np.testing.assert_array_equal(read_video(tmp_path / "x.webp"), moving_square(3))


def test_what_a_killed_process_leaves_is_removed_at_the_next_write(tmp_path: Path) -> None:
    names = ["x.mp4", "x.webp", "x.gif", "x"]
    code = """
import contextlib, os, signal, sys
import numpy as np
from ardiff_engine.media import export

staged = export.staged

@contextlib.contextmanager
def killed_before_the_end(target):
    with staged(target) as temporary:
        yield temporary
        os.kill(os.getpid(), signal.SIGKILL)

export.staged = killed_before_the_end
for target in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            export.export_video(np.zeros((3, 8, 8, 3), np.uint8), target)
        finally:
            os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
    targets = [tmp_path / f"of {name}" / name for name in names]
    for target in targets:
        target.parent.mkdir()
    ended = subprocess.run([sys.executable, "-c", code, *map(str, targets)], capture_output=True, text=True)
    assert ended.stdout.split() == [str(int(signal.SIGKILL))] * len(names), ended
    for target in targets:
        assert not target.exists() and list(target.parent.iterdir()) != []
        export_video(moving_square(3), target)
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["x.mp4", "x.webp", "x.gif"])
def test_what_an_encoder_raises_is_typed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("from within a library")

    monkeypatch.setattr(Image.Image, "save", fail)
    monkeypatch.setattr(export_module.Mp4Encoder, "_mux", fail)
    with pytest.raises(MediaError, match=f"{name}.*48 x 32.*within a library"):
        export_video(moving_square(2), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [0, -1, 65, 10**9, 1.5, True, "2"])
def test_scale_out_of_range(tmp_path: Path, scale: object) -> None:
    with pytest.raises(MediaError, match="scale"):
        export_video(moving_square(2), tmp_path / "x.webp", scale=scale)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="scale"):
        open_writer(tmp_path / "x.mp4", scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.mp4", "x.webp", "x"])
@pytest.mark.parametrize("fps", [1e300, 1e-300, float("inf"), "8", None, 1 + 2j, 1001])
def test_rates_that_no_video_has(tmp_path: Path, name: str, fps: object) -> None:
    with pytest.raises(MediaError, match="fps"):
        export_video(moving_square(2), tmp_path / name, fps=fps)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="fps|grow"):
        open_writer(tmp_path / name, fps=fps)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_rates(tmp_path: Path) -> None:
    for fps in (np.float32(8), np.int64(8), np.float64(8)):
        export_video(moving_square(2), tmp_path / "x.webp", fps=fps)
