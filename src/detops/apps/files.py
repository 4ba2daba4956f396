"""Files that a kill or a full disk cannot leave half written."""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LONGEST = 240  # bytes of a name to which a few more may be added


@contextmanager
def written_whole(
    path: Path, *, durable: bool = True, before: Callable[[int], None] | None = None
) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when it is complete.

    Args:
        path: Where it is to be; its folder is made if it is missing.
        durable: Wait until it is on the disk, so that it outlives a failure of the machine too.
        before: Called with its size in bytes, once it is complete and before it has its name.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name if len(os.fsencode(path.name)) < LONGEST else f"{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f".{name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if before is not None:
            before(temporary.stat().st_size)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name is on the disk too
        finally:
            os.close(folder)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    with written_whole(path) as file:
        file.write(data)


def append_line(path: Path, text: str) -> None:
    """Add a line to a file and wait until it is on the disk; after a line that was cut off, a new one begins.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(f"{text}\n".encode())
        file.flush()
        os.fsync(file.fileno())
