"""`results.jsonl`: a line an image, in the order of the images, which a killed run goes on from.

lines -> results.jsonl (while the run goes on) -> results.json (COCO's form, at its end)

A line is {"path", "image_id", "width", "height", "detections": [{"category_id", "bbox", "score"}, ...]}, or
{"path", "image_id", "error"} for an image that could not be decoded. Beside it, `predict.json` holds what the lines
depend on, so that none of another run's are taken for this one's.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """How many images there are lines of, how many of them failed, and what was found on the others."""

    images: int
    failed: int
    detections: int


class ResultsFile:
    """The file while a run writes it; no other process may meanwhile.

    Args:
        out: Its folder.
        settings: All that decides what the lines say; must be JSON.
        paths: Of the images: line i is about image i.
        resume: Go on behind the lines that are there, if any. Otherwise begin anew; a finished run is replaced.

    Attributes:
        count: Lines that are whole and on their way to the disk.

    Raises:
        ValueError: Another process writes to the folder; what is there did not finish and `resume` is not asked for;
            or it is asked for, but what is there has other settings or other images, or is damaged.
    """

    def __init__(self, out: Path, settings: dict[str, Any], paths: Iterable[str], resume: bool) -> None:
        self.count, self._path, self._coco = 0, out / "results.jsonl", out / "results.json"
        out.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            self._lock()
            if resume and self._path.stat().st_size:
                self._check_settings(out / "predict.json", settings)
                self._go_on(paths)
            else:
                self._begin(out / "predict.json", settings)
            self._coco.unlink(missing_ok=True)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, lines: Sequence[str]) -> None:
        """Add lines, each as `encode` makes it; a process that is killed afterwards has not lost them."""
        self._file.write("".join(lines).encode())
        self._file.flush()
        self.count += len(lines)

    def finish(self) -> Summary:
        """Bring the lines to the disk, and write them in COCO's form, of which never more than a line is in memory."""
        os.fsync(self._file.fileno())
        images = failed = detections = 0
        with _written_whole(self._coco) as file:
            file.write("[")
            for line in map(json.loads, self._whole_lines()):
                images += 1
                failed += "error" in line
                for row in line.get("detections", ()):
                    row = {"image_id": line["image_id"], **row, "file_name": Path(line["path"]).name}
                    file.write((", " if detections else "") + json.dumps(row))
                    detections += 1
            file.write("]\n")
        return Summary(images, failed, detections)

    def _lock(self) -> None:
        """Keep other processes out until the file is closed or the process ends."""
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows
            return
        try:  # of POSIX's kind, which the processes that read images do not inherit: they may outlive a kill a while
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{self._path}: another process writes to it") from error

    def _begin(self, settings_path: Path, settings: dict[str, Any]) -> None:
        if self._path.stat().st_size and not self._coco.exists():
            raise ValueError(
                f"{self._path.parent}: holds a run that did not finish; go on with --resume, choose another --out, "
                "or remove its results.jsonl"
            )
        self._file.truncate(0)  # before the settings: at no time do lines stand beside those of another run
        with _written_whole(settings_path) as file:
            file.write(json.dumps(settings, indent=1) + "\n")

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        if not path.exists():
            raise ValueError(f"{path}: is missing, so results.jsonl cannot be gone on from")
        before, now = json.loads(path.read_text()), json.loads(json.dumps(settings))
        other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if other:
            raise ValueError(
                f"{path.parent}: was begun with other {', '.join(other)}; resume with the same, or choose another --out"
            )

    def _go_on(self, paths: Iterable[str]) -> None:
        """Check the lines that are there, and cut a last one that is torn."""
        expected, end = iter(paths), 0
        for number, text in enumerate(self._whole_lines(), 1):
            try:
                path = json.loads(text)["path"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path}: line {number} is damaged") from error
            if path != (wanted := next(expected, None)):
                raise ValueError(
                    f"{self._path}: line {number} is about {path}, expected {wanted or 'no more lines'}: "
                    "the images are others than before"
                )
            end += len(text)
            self.count = number
        self._file.truncate(end)

    def _whole_lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        for line in self._file:
            if line.endswith(b"\n"):
                yield line


def encode(line: Line) -> str:
    """A line of the file; ASCII, for names of files need not be valid Unicode."""
    return json.dumps(line, allow_nan=False) + "\n"


def error_of(text: str) -> str | None:
    """Why the image of a line could not be decoded, if so; does not parse the others, which may be long."""
    return json.loads(text).get("error") if '"error": ' in text else None


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name when it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
