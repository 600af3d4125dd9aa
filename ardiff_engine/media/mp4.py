# SPDX-License-Identifier: Apache-2.0
"""H.264 in mp4 through PyAV: 4:2:0, BT.709, sizes padded to even numbers because 4:2:0 halves them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any

import numpy as np

from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media.encoding import encoding
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.rate import rate_of

# Visually lossless for synthetic pictures; libx264's own default of 23 smears small, sharp shapes. The preset
# takes half the time of the default "medium" for files of the same size. One thread, since whoever makes
# videos has better use for the others, and so the bytes do not depend on the machine.
QUALITY = "14"
BT709 = 1


def pyav() -> ModuleType:
    """The `av` module, or a MediaError that names the extra which brings it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(
            explain(
                "mp4 files need PyAV",
                got=f"no module 'av' ({error})",
                expected="PyAV installed",
                fix="pip install av, or write .webp, .gif or a folder of .png instead.",
            )
        ) from error
    return av


class Mp4Encoder:
    """Writes frames of one size into an mp4 file, one by one. Use it as a context manager.

    growing=True writes a fragmented file: each frame is on its way to the disk when `write` returns, and the
    file plays up to its last frame even if the process is killed. growing=False puts the index in front, as
    web players want it.
    """

    def __init__(
        self, path: Path, fps: float, *, growing: bool = False, file: IO[bytes] | None = None
    ) -> None:
        """file: takes the bytes in place of `path`, which is then only a name for messages."""
        av = pyav()
        self._video_frame = av.VideoFrame
        self._path, self._growing = path, growing
        self._stream: Any = None
        self._size: tuple[int, ...] = ()
        flags = "frag_every_frame+empty_moov+default_base_moof" if growing else "faststart"
        options = {"movflags": flags, "flush_packets": "1" if growing else "-1"}
        # With its protocol, and absolute, no name can be taken for an address.
        url = f"file:{path.absolute()}" if file is None else file
        with encoding(self._path, self._size):
            self._container: Any = av.open(url, mode="w", format="mp4", options=options)
        self._rate = rate_of(fps)

    def __enter__(self) -> Mp4Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: Pixels) -> None:
        """Appends one frame, uint8 [H, W, 3]. Raises MediaError if its size differs from the first one's."""
        if self._stream is None:
            self._size = frame.shape
            with encoding(self._path, self._size):
                self._open_stream(frame)
        if frame.shape != self._size:
            raise MediaError(
                explain(
                    "a frame does not fit the video",
                    got=list(frame.shape),
                    expected=list(self._size),
                    fix="Give all frames of one video the same size.",
                )
            )
        height, width = frame.shape[:2]
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with encoding(self._path, self._size):
            picture = self._video_frame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            self._mux(picture)

    def close(self) -> None:
        """Writes what the encoder still holds, and the index."""
        with encoding(self._path, self._size):
            try:
                if self._stream is not None:
                    self._mux(None)
            finally:
                self._container.close()

    def _open_stream(self, frame: Pixels) -> None:
        options = {"crf": QUALITY, "preset": "veryfast"}
        if self._growing:
            options |= {"tune": "zerolatency"}
        stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        stream.height, stream.width = (size + size % 2 for size in frame.shape[:2])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT709
        if self._growing:
            # Players start at key frames: whoever opens the growing file waits one second at most.
            context.gop_size = max(1, round(self._rate))
        self._stream = stream

    def _mux(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
