"""Streams as images: cameras, addresses and pipes, whose frames come one after the other, and are gone once read.

A thread reads ahead, so that an interrupt is heeded where no frame comes. Of what comes at its own pace, such as a
camera, the newest frame is taken, and those that nobody had time for are passed over; elsewhere every frame is waited
for.
"""

import os
import re
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detops.apps import note, require, warn
from detops.arguments import flat

if TYPE_CHECKING:
    from PIL.Image import Image

PACED = ("rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "udp")  # addresses whose frames come at their own pace
AHEAD = 16  # frames that are read ahead where all are wanted
PATIENCE = 30.0  # seconds in which an address must answer, and its next frame come
STANDARD_INPUT = "-"


def is_stream(name: str) -> bool:
    """Tell whether a name is that of a stream.

    That is "-" for the standard input, an address, a pipe or a device in the file system, or the number of a camera,
    unless there is a file of this name.
    """
    if name == STANDARD_INPUT or _scheme(name):
        return True
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return name.isdecimal()
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


class Stream:
    """The frames of a stream, from where it is now. Can be iterated once.

    Args:
        name: Its name, as `is_stream` takes it.

    Attributes:
        frames: The frames that were taken, for who needs them again, and removes them.
        error: Why it ended before its end; empty if it did not.
        passed_over: Number of frames that nobody had time for.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: It cannot be read as a video.
    """

    def __init__(self, name: str) -> None:
        self.frames: deque[Image] = deque()
        self.error, self.passed_over = "", 0
        self._newest = name.isdecimal() or _scheme(name) in PACED or _is_device(name)
        self._changed, self._waiting = threading.Condition(), deque[tuple[int, Any]]()
        self._stopped = self._ended = False
        av = require("av", "PyAV", "predict", "video")
        try:
            self._container = _opened(av, name)
        except Exception as error:  # PyAV's errors are of many kinds
            raise ValueError(_without_password(f"{name}: cannot be read as a video: {flat(error)}")) from error
        if not self._container.streams.video:
            raise ValueError(f"{_without_password(name)}: holds no video")
        self._broken = av.error.InvalidDataError
        self._name, video = _without_password(name), self._container.streams.video[0]
        self._size = f"{video.width} x {video.height}"
        video.thread_type = "SLICE" if self._newest else "AUTO"  # the latter decodes frames ahead

    def tell(self, console: Console) -> None:
        """Print what is read."""
        which = "the newest frames" if self._newest else "all frames"
        note(console, f"reading {which} of {self._name}, {self._size}, until it ends or Ctrl-C is pressed")

    def tell_end(self, console: Console) -> None:
        """Print what was not read."""
        if self.passed_over:
            note(
                console, f"{self.passed_over:,} frames were passed over, as they came faster than they were detected on"
            )
        if self.error:
            warn(console, f"{self._name}: the stream ended: {self.error}")

    def __iter__(self) -> Iterator[tuple[str, "Image"]]:
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        while True:
            with self._changed:
                while not (self._waiting or self._ended or self._stopped):
                    self._changed.wait(0.2)
                if self._stopped or not self._waiting:
                    break
                number, frame = self._waiting.popleft()
                self._changed.notify()
            image: Image = frame.to_image()
            self.frames.append(image)
            yield f"frame_{number:06}.png", image
        self.stop()
        thread.join(1.0)
        if not thread.is_alive():  # else it waits for a frame, and ends with the process
            self._container.close()

    def stop(self) -> None:
        """End with the frame that was taken last."""
        self._stopped = True

    @contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Let an interrupt, or a request to terminate, end the stream; a second one has its own effect."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def end(*_: object) -> None:
            restore()
            self.stop()

        for number in before:
            signal.signal(number, end)
        try:
            yield
        finally:
            restore()

    def _read(self) -> None:
        """Decode until the stream ends or is stopped."""
        try:
            for number, frame in enumerate(self._decoded(), 1):
                with self._changed:
                    if self._newest:
                        self.passed_over += len(self._waiting)
                        self._waiting.clear()
                    while len(self._waiting) >= AHEAD and not self._stopped:
                        self._changed.wait(0.2)
                    if self._stopped:
                        break
                    self._waiting.append((number, frame))
                    self._changed.notify()
        except Exception as error:
            self.error = _without_password(flat(error))
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(video=0):
            try:
                yield from packet.decode()
            except self._broken:  # such as what precedes the first whole frame of a camera
                continue


def _opened(av: Any, name: str) -> Any:
    """Open a stream by PyAV."""
    if name == STANDARD_INPUT:
        return av.open(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))
    scheme = _scheme(name)
    if scheme:
        # Without TCP, cameras' pictures tear when a packet is lost.
        options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
        return av.open(name, timeout=PATIENCE, options=options)
    if _is_device(name):
        return av.open(name, format="v4l2")
    if os.path.exists(name):
        # This waits for who writes into the pipe, and can be interrupted. A buffer would wait until it is full.
        return av.open(open(name, "rb", buffering=0))
    if sys.platform == "darwin":
        return av.open(name, format="avfoundation", options={"framerate": "30"})
    if sys.platform.startswith("linux"):
        return av.open(f"/dev/video{name}", format="v4l2")
    raise ValueError("cameras are read by their number on Linux and macOS alone")


def _scheme(name: str) -> str:
    """Return the part of an address before "://"; empty if it is none."""
    found = re.match(r"([a-z][a-z0-9+.-]+)://", name)
    return found[1] if found else ""


def _is_device(name: str) -> bool:
    return name != STANDARD_INPUT and not _scheme(name) and os.path.exists(name) and stat.S_ISCHR(os.stat(name).st_mode)


def _without_password(text: str) -> str:
    """Leave the user's name and password out of the addresses in a text."""
    return re.sub(r"://[^/@\s]*@", "://", text)
