"""Listing the images in files and folders, in order and in bounded memory: long lists go to temporary files.

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
SORTED_AT_ONCE = 200_000  # names, about 20 MB
KEPT_IN_MEMORY = 8 << 20  # bytes of a list; a longer one goes to the disk
READ_AT_ONCE = 1 << 16  # bytes

T = TypeVar("T")


class Listing:
    """The paths of files as they are given, and of the images in folders (not in their subfolders), sorted by name.

    A listing shows what the folders held when it was made, can be iterated several times, and knows its length.

    Args:
        paths: Files and folders.

    Raises:
        FileNotFoundError: A path does not exist, or there is no image at all.
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
    """Yield lists of `size` items and one of the rest, like `itertools.batched` of Python 3.12."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _images(path: Path) -> Iterator[str]:
    """Yield the file itself, or the images in the folder."""
    if path.is_dir():
        yield from (str(path / name) for name in _sorted_names(path))
    elif path.exists():
        yield str(path)
    else:
        raise FileNotFoundError(f"{path}: no such file")


def _sorted_names(folder: Path) -> Iterator[str]:
    """Yield the names of the images in a folder: parts of them are sorted, then merged."""
    with os.scandir(folder) as entries:
        names = (e.name for e in entries if os.path.splitext(e.name)[1].lower() in ENDINGS and not e.is_dir())
        parts = []
        while part := sorted(islice(names, SORTED_AT_ONCE)):
            parts.append(_stored(part))
    yield from heapq.merge(*map(_read, parts))


def _stored(lines: Iterable[str]) -> IO[bytes]:
    """Write lines to a file that vanishes with its last reference; as JSON, as names may contain line breaks."""
    file = tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY)  # noqa: SIM115
    for line in lines:
        file.write(json.dumps(line).encode() + b"\n")
    return file


def _read(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a file, which several readers may read at once."""
    position = 0
    while True:
        file.seek(position)
        lines = file.readlines(READ_AT_ONCE)
        position = file.tell()
        if not lines:
            return
        yield from map(json.loads, lines)
