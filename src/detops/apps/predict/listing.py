"""Images of files and folders, in order, in bounded memory: what is too much for it goes to temporary files.

files and folders -> Listing -> paths as text
"""

import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))
SORTED_AT_ONCE = 200_000  # names: some 20 MB
KEPT_IN_MEMORY = 8 << 20  # bytes of a list that needs no file on the disk
READ_AT_ONCE = 1 << 16

T = TypeVar("T")


class Listing:
    """Files as they are named, and the images within folders (not within folders in these), by name.

    It is what the folders held when it was made, may be iterated many times, and knows its length.

    Args:
        paths: Files and folders.

    Raises:
        FileNotFoundError: There is no such file, or no image at all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._count = 0
        self._file = _stored(self._counted(path for group in paths for path in _images(group)))
        if not self._count:
            raise FileNotFoundError("images: expected at least one, found none in the folders")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return _read(self._file)

    def _counted(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            self._count += 1
            yield path


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left; as `itertools.batched` of Python 3.12."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _images(path: Path) -> Iterator[str]:
    """The file itself, or the images within the folder."""
    if path.is_dir():
        yield from (str(path / name) for name in _sorted_names(path))
    elif path.exists():
        yield str(path)
    else:
        raise FileNotFoundError(f"{path}: no such file")


def _sorted_names(folder: Path) -> Iterator[str]:
    """Names of images in a folder: sorted a part at a time, and merged."""
    with os.scandir(folder) as entries:
        names = (e.name for e in entries if os.path.splitext(e.name)[1].lower() in ENDINGS and not e.is_dir())
        parts = []
        while part := sorted(islice(names, SORTED_AT_ONCE)):
            parts.append(_stored(part))
    yield from heapq.merge(*map(_read, parts))


def _stored(lines: Iterable[str]) -> IO[bytes]:
    """Write lines to a file that is gone with its last reference; JSON, for a name may hold anything but "/" and 0."""
    file = tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY)  # noqa: SIM115
    for line in lines:
        file.write(json.dumps(line).encode() + b"\n")
    return file


def _read(file: IO[bytes]) -> Iterator[str]:
    """Its lines; several readers of one file do not disturb each other."""
    position = 0
    while True:
        file.seek(position)
        lines = file.readlines(READ_AT_ONCE)
        position = file.tell()
        if not lines:
            return
        yield from map(json.loads, lines)
