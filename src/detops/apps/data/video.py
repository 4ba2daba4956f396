"""Video files as images: the frames of a file are listed without decoding them, and read one after the other.

A frame is named by a path below its file, such as clip.mp4/clip_000012.png, where no other file can be. Frames are read
by the process that lists them, not by forks of it: the threads of a decoder are not in a fork.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detops.apps import require
from detops.arguments import flat

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))
_open_videos = threading.local()  # of each thread the one it reads: decoders are no use to several at once


def is_video(name: str) -> bool:
    """Tell whether a file is a video by the ending of its name."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def frames_of(path: Path) -> Iterator[str]:
    """Yield the names of the frames of a video: those that its container holds, counted from 1.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: It is no video.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = sum(packet.size > 0 for packet in container.demux(stream))
    except IndexError:
        raise ValueError(f"{path}: holds no video") from None
    except Exception as error:  # PyAV's errors are of many kinds
        raise ValueError(f"{path}: cannot be read as a video: {flat(error)}") from error
    for number in range(1, count + 1):
        yield os.path.join(path, f"{path.stem}_{number:06}.png")


def video_of(path: str) -> tuple[str, int] | None:
    """Return the file and the number of the frame that a path names; None if it names none."""
    file, name = os.path.split(path)
    number = os.path.splitext(name)[0].rpartition("_")[2]
    return (file, int(number)) if is_video(file) and number.isdecimal() and os.path.isfile(file) else None


def read_frame(file: str, number: int) -> "Image":
    """Decode a frame as RGB. Frames that are read in order are decoded once.

    Args:
        file: The video.
        number: Number of the frame, from 1.

    Raises:
        ValueError: It cannot be decoded, or the video ends before.
    """
    reader: _Reader | None = getattr(_open_videos, "reader", None)
    if reader is None or reader.file != file or reader.next > number:
        reader = _open_videos.reader = _Reader(file)
    return reader.read(number)


class _Reader:
    """A video that is decoded from its beginning."""

    def __init__(self, file: str) -> None:
        self.file, self.next = file, 1
        av = _av()
        try:
            self._container = av.open(file)
            stream = self._container.streams.video[0]
            stream.thread_type = "AUTO"
            self._frames = self._container.decode(stream)
        except Exception as error:
            raise ValueError(f"{file}: cannot be read as a video: {flat(error)}") from error

    def read(self, number: int) -> "Image":
        """Decode up to a frame, and return it."""
        frame: Any = None
        try:
            while self.next <= number:
                self.next += 1
                frame = next(self._frames, None)
            if frame is None:
                raise ValueError("the video ends before")
            image: Image = frame.to_image()
        except Exception as error:
            raise ValueError(f"{self.file}: frame {number} cannot be decoded: {flat(error)}") from error
        return image


def _av() -> Any:
    return require("av", "PyAV", "predict", "video")
