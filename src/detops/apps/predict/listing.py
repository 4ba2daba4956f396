"""Listing the images in files and folders, in order and in bounded memory: long lists go to temporary files.

files and folders -> Listing -> paths as text
"""

import glob
import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

from rich.console import Console

from detops.apps import note
from detops.apps.data.images import is_image
from detops.apps.data.problems import quoted
from detops.apps.data.video import frames_of, is_video

SORTED_AT_ONCE = 200_000  # names, about 20 MB
KEPT_IN_MEMORY = 8 << 20  # bytes of a list; a longer one goes to the disk
READ_AT_ONCE = 1 << 16  # bytes

T = TypeVar("T")


class Listing:
    """The paths of files as they are given, and of the images in folders (not in their subfolders), sorted by name.

    A pattern such as "photos/*.jpg" stands for the files that fit it, sorted; "**" for any number of folders. A video
    stands for its frames.

    An image that is named twice, itself or by its folder, is listed once, where it comes first. A listing shows what
    the folders held when it was made, can be iterated several times, and knows its length.

    Args:
        paths: Files and folders.

    Attributes:
        left_out: Number of entries of the folders that are no images by their names, and the first of them.
        repeated: Number of images that were named twice, and the first of them.
        videos: Whether some of the images are frames of videos.

    Raises:
        FileNotFoundError: A path does not exist, or there is no image at all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._count = 0
        self.left_out: tuple[int, str] = (0, "")
        self.repeated: tuple[int, str] = (0, "")
        self.videos = False
        self._file = _stored(self._listed(paths))
        if not self._count:
            more = f"; {self._left_out_text()}" if self.left_out[0] else ""
            raise FileNotFoundError(f"images: expected at least one, found none in the folders{more}")

    def tell(self, console: Console) -> None:
        """Print what was left out."""
        if self.left_out[0]:
            note(console, self._left_out_text())
        if self.repeated[0]:
            note(console, f"{self.repeated[0]:,} images are named twice and taken once, such as {self.repeated[1]}")

    def _left_out_text(self) -> str:
        count, first = self.left_out
        return f"{count:,} files or folders left out, no images by the ending of their names, such as {quoted(first)}"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return _read(self._file)

    def _listed(self, paths: Sequence[Path]) -> Iterator[str]:
        """Yield each image once. Only what the user wrote is kept in memory, not what the folders hold."""
        folders: set[str] = set()
        files: dict[str, set[str]] = {}  # by folder
        for path in self._expanded(paths):
            if path.is_dir():
                folder = os.path.realpath(path)
                if folder in folders:
                    self._repeat(str(path))
                    continue
                folders.add(folder)
                for name in self._sorted_names(path):
                    if name in files.get(folder, ()):
                        self._repeat(str(path / name))
                    else:
                        self._count += 1
                        yield str(path / name)
            elif path.is_file() and is_video(path.name):
                video = os.path.realpath(path)
                if video in folders:  # its frames lie below it
                    self._repeat(str(path))
                    continue
                folders.add(video)
                self.videos = True
                for frame in frames_of(path):
                    self._count += 1
                    yield frame
            elif path.exists():
                folder, name = os.path.realpath(path.parent), path.name
                if name in files.get(folder, ()) or (folder in folders and is_image(name, hidden=True)):
                    self._repeat(str(path))
                else:
                    files.setdefault(folder, set()).add(name)
                    self._count += 1
                    yield str(path)
            else:
                raise FileNotFoundError(f"{path}: no such file")

    @staticmethod
    def _expanded(paths: Sequence[Path]) -> Iterator[Path]:
        """Replace patterns, which a shell did not, by the files that fit."""
        for path in paths:
            if glob.has_magic(str(path)) and not os.path.lexists(path):
                found = sorted(glob.glob(str(path), recursive=True))
                if not found:
                    raise FileNotFoundError(f"{path}: no file fits this pattern")
                yield from map(Path, found)
            else:
                yield path

    def _repeat(self, path: str) -> None:
        self.repeated = (self.repeated[0] + 1, self.repeated[1] or path)

    def _sorted_names(self, folder: Path) -> Iterator[str]:
        """Yield the names of the images in a folder: parts of them are sorted, then merged."""
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries if self._is_image(entry))
            parts = []
            while part := sorted(islice(names, SORTED_AT_ONCE)):
                parts.append(_stored(part))
        yield from heapq.merge(*map(_read, parts))

    def _is_image(self, entry: "os.DirEntry[str]") -> bool:
        if is_image(entry.name, hidden=True) and not entry.is_dir():
            return True
        self.left_out = (self.left_out[0] + 1, self.left_out[1] or entry.name)
        return False


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items and one of the rest, like `itertools.batched` of Python 3.12."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


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
