# SPDX-License-Identifier: Apache-2.0
"""Videos in and out of files: mp4 (PyAV), webp and gif (Pillow), folders of png; contact sheets."""

from ardiff_engine.media.export import check_target, export_video
from ardiff_engine.media.frames import as_frames
from ardiff_engine.media.read import open_video, read_clip, read_video
from ardiff_engine.media.sheet import contact_sheet
from ardiff_engine.media.video import Clip, Video
from ardiff_engine.media.writer import FrameWriter, open_writer

__all__ = [
    "Clip",
    "FrameWriter",
    "Video",
    "as_frames",
    "check_target",
    "contact_sheet",
    "export_video",
    "open_video",
    "open_writer",
    "read_clip",
    "read_video",
]
