"""The folder that a command writes to, in which it replaces nothing but what detops wrote there.

`.detops` in that folder is the record of it, a line per file: its name and size as JSON, or null for the size of a file
that grows. A file that is not in the record, or has another size, belongs to somebody else.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from detops.apps.files import written_whole

RECORD = ".detops"
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"))


class Outputs:
    """Writes files into a folder.

    Args:
        folder: The folder, which is made when the first file is written.
        inputs: Files and folders that the command reads.

    Raises:
        ValueError: The folder is one of those.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path] = ()) -> None:
        self.folder = folder
        inputs = list(inputs)
        if any(path.is_dir() and path.resolve() == folder.resolve() for path in inputs):
            raise ValueError(f"{folder}: is a folder that is read, and would be written to; choose another --out")
        self._inputs = {path.resolve() for path in inputs}
        self._input_folders = {(path if path.is_dir() else path.parent).resolve() for path in inputs}
        self._sizes: dict[str, set[int | None]] = {}
        for name, size in _read(folder / RECORD):
            self._sizes.setdefault(name, set()).add(size)

    def claim(self, *names: str) -> None:
        """Check that files may be written, before anything is done.

        Args:
            names: Their paths within the folder.

        Raises:
            ValueError: There is such a file, and the command reads it or detops did not write it.
        """
        for name in names:
            path = self.folder / name
            if path.resolve() in self._inputs:
                raise ValueError(f"{path}: is read by this command, which would write over it; choose another --out")
            if not self._is_own(name):
                raise ValueError(
                    f"{path}: was not written by detops, or was changed since, and is not replaced; "
                    "choose another --out, or move it away"
                )

    def claim_pictures(self, name: str) -> None:
        """Check that a folder of pictures may be filled: it holds no picture of somebody else.

        Args:
            name: Path of the folder within this one.

        Raises:
            ValueError: The command reads images in that folder, or it holds pictures that detops did not write.
        """
        path = self.folder / name
        if path.resolve() in self._input_folders:
            raise ValueError(f"{path}: holds images that are read, and would be written to; choose another --out")
        if not path.is_dir():
            self.claim(name)
            return
        for other in os.scandir(path):
            if os.path.splitext(other.name)[1].lower() in PICTURES and not self._is_own(f"{name}/{other.name}"):
                raise ValueError(
                    f"{path}: holds pictures that detops did not write, such as {other.name}; choose another --out"
                )

    def claim_folder(self, name: str) -> None:
        """Make a folder all of whose files are written by the command.

        Args:
            name: Path of the folder within this one.

        Raises:
            ValueError: It holds something already, and was not made so before.
        """
        path = self.folder / name
        if f"{name}/" not in self._sizes and path.exists() and any(path.iterdir()):
            raise ValueError(f"{path}: holds files that detops did not write; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        self.record(f"{name}/", None)

    @contextmanager
    def open(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """Open a file that appears under its name only when it is complete, and then is detops' own.

        Args:
            name: Its path within the folder.
            durable: Wait until it is on the disk.

        Raises:
            ValueError: The file may not be written (see `claim`).
            OSError: It cannot be written; what was there before still is.
        """
        self.claim(name)
        with written_whole(
            self.folder / name, durable=durable, before=lambda size: self.record(name, size)
        ) as file:  # fmt: skip
            yield file

    def write(self, name: str, data: bytes | memoryview | str) -> Path:
        """Write a file completely or not at all.

        Args:
            name: Its path within the folder.
            data: Its content.

        Raises:
            ValueError: The file may not be written (see `claim`).
            OSError: It cannot be written; what was there before still is.
        """
        with self.open(name) as file:
            # A name need not be valid Unicode.
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
        return self.folder / name

    def growing(self, name: str) -> Path:
        """Claim a file to which lines are added, and return its path.

        Raises:
            ValueError: The file may not be written (see `claim`).
        """
        self.claim(name)
        self.record(name)
        return self.folder / name

    def adopt(self, *names: str) -> None:
        """Take files for detops' own whose content showed that they are, such as those of a run that was copied."""
        for name in names:
            if (self.folder / name).is_file() and not self._is_own(name):
                self.record(name, (self.folder / name).stat().st_size)

    def remove_own(self, beginning: str = "") -> None:
        """Remove the files that detops wrote; what somebody else put beside them stays.

        Args:
            beginning: How their paths within the folder begin, such as "images/".
        """
        for name in self._sizes:
            path = self.folder / name
            if name.startswith(beginning) and path.is_file() and self._is_own(name):
                path.unlink()

    def _is_own(self, name: str) -> bool:
        """Whether there is no such file, or an empty one, or detops wrote it."""
        path, sizes = self.folder / name, self._sizes.get(name, ())
        if not os.path.lexists(path):
            return True
        if not path.is_file():
            return False
        size = path.stat().st_size
        return size == 0 or None in sizes or size in sizes

    def record(self, name: str, size: int | None = None) -> None:
        """Add a file to the record: of this size, or one that grows."""
        sizes = self._sizes.setdefault(name, set())
        if size in sizes:
            return
        sizes.add(size)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Begins with a line break: the line before may have been cut off by a kill.
        with (self.folder / RECORD).open("ab") as file:
            file.write(f"\n{json.dumps([name, size])}".encode())


def _read(path: Path) -> Iterator[tuple[str, int | None]]:
    """Yield the names and sizes of a record, without what a kill cut off."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            name, size = json.loads(line)
        except (ValueError, TypeError):
            continue
        yield str(name), size


def claim_numbers(path: Path, keys: Iterable[str]) -> None:
    """Check that a JSON object may be written to a file that the user named: over an earlier one at most.

    Args:
        path: The file.
        keys: Keys by which an earlier one is known.

    Raises:
        ValueError: There is a file that is something else.
    """
    if not os.path.lexists(path):
        return
    try:
        before = json.loads(path.read_bytes()) if path.stat().st_size < 1 << 24 else None
    except (ValueError, RecursionError):
        before = None
    if not (isinstance(before, dict) and set(keys) <= before.keys()):
        raise ValueError(f"{path}: is something else than an earlier such file, and is not replaced")


def write_numbers(path: Path, content: Mapping[str, object], keys: Iterable[str]) -> None:
    """Write a JSON object to a file that the user named, over an earlier one at most.

    Args:
        path: The file.
        content: What to write.
        keys: Keys by which an earlier one is known.

    Raises:
        ValueError: There is a file that is something else.
        OSError: It cannot be written; what was there before still is.
    """
    claim_numbers(path, keys)
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
