"""`results.jsonl`: a line per image, in the order of the images, from which a killed run resumes.

lines -> results.jsonl (during the run) -> results.json and other formats (at its end)

A line is {"path", "image_id", "width", "height", "detections": [{"category_id", "category", "bbox", "score"}, ...]},
or {"path", "image_id", "error"} for an image that could not be decoded; "page" is 1 where a file holds further images.
Beside it, `predict.json` holds everything that the lines depend on, so that the lines of another run are not mistaken
for those of this one.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from detops.apps.data.ids import Id
from detops.apps.outputs import Outputs
from detops.apps.predict import formats
from detops.apps.predict.form import Form
from detops.apps.predict.formats import Line
from detops.apps.predict.predictor import Row
from detops.apps.predict.reading import ReadBatch
from detops.arguments import flat

PICTURES = "images"  # folder of the pictures
SYNC_EVERY = 5.0  # seconds after which lines are on the disk


@dataclass(frozen=True)
class Summary:
    """What the lines say.

    Attributes:
        images: Number of lines.
        failed: Number of images of which there are no detections.
        detections: Number of detections on the others.
        full: Number of images with as many detections as can be, even the last of which is good: there may be more.
        several: Number of files with further images, which were not detected on.
    """

    images: int
    failed: int
    detections: int
    full: int = 0
    several: int = 0


class ResultsFile:
    """The file while a run writes it, which locks out other processes.

    Args:
        out: Folder of the file.
        settings: Everything that the lines depend on; must be JSON.
        paths: Paths of the images: line i is about image i.
        resume: Continue after the lines that exist, if any. Otherwise start again; a finished run is replaced.
        outputs: The folder, as far as it is known already.

    Attributes:
        count: Number of complete lines that were written.

    Raises:
        ValueError: Another process writes to the folder; without `resume`, an unfinished run is there; or with it, the
            run that is there has other settings or images, or is damaged; or there are files of somebody else.
    """

    def __init__(
        self, out: Path, settings: dict[str, Any], paths: Iterable[str], resume: bool, outputs: Outputs | None = None
    ) -> None:
        self.count, self._path, self._coco = 0, out / "results.jsonl", out / "results.json"
        self._outputs, self._synced = outputs or Outputs(out), time.monotonic()
        existed = self._path.exists() and self._path.stat().st_size > 0
        if not (resume and existed):  # else its content shows whose it is
            self._outputs.claim("predict.json", "results.json")
            self._outputs.growing("results.jsonl")
        out.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        try:
            self._lock()
            if resume and self._path.stat().st_size:
                self._check_settings(out / "predict.json", settings)
                self._resume(paths)
                self._outputs.adopt("predict.json")
                self._outputs.claim("results.json")
            else:
                self._start_again(settings)
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
        """Append lines made by `encode`. They survive a kill of this process, and soon a failure of the machine."""
        self._file.write("".join(lines).encode())
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        self.count += len(lines)

    def finish(
        self,
        others: Sequence[str] = (),
        paths: Iterable[str] = (),
        names: Mapping[Id, str] = MappingProxyType({}),
        most: int = sys.maxsize,
        good: float = 0.0,
    ) -> Summary:
        """Flush the lines to the disk and write them in other formats, with only one line in memory at a time.

        Args:
            others: Formats beside COCO's.
            paths: Paths of all images, for YOLO's.
            names: Names of the categories by id, in the order of the classes, for YOLO's.
            most: Largest number of detections per image.
            good: Score from which a detection is worth having.
        """
        os.fsync(self._file.fileno())
        images = failed = detections = full = several = 0
        with formats.writers(self._outputs, others, paths, names) as writers:
            for line in map(json.loads, self._whole_lines()):
                images += 1
                failed += "error" in line
                rows = line.get("detections", ())
                detections += len(rows)
                several += "page" in line
                full += len(rows) >= most and rows[-1]["score"] >= good
                for writer in writers:
                    writer.add(line)
        return Summary(images, failed, detections, full, several)

    def paths(self) -> Iterator[str]:
        """Yield the path of each line."""
        for text in self._whole_lines():
            yield json.loads(text)["path"]

    def _lock(self) -> None:
        """Lock the file until it is closed or the process ends."""
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows
            return
        try:  # a POSIX lock: the processes that read images do not inherit it, and may outlive a kill for a while
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{self._path}: another process is writing to it") from error

    def _start_again(self, settings: dict[str, Any]) -> None:
        if self._path.stat().st_size and not self._coco.exists():
            raise ValueError(
                f"{self._path.parent}: holds an unfinished run; continue it with --resume, choose another --out, "
                "or remove its results.jsonl"
            )
        self._file.truncate(0)  # before the settings, so that lines never stand beside the settings of another run
        self._outputs.remove_own(f"{PICTURES}/")  # those of the run before, which may have had other images
        self._outputs.write("predict.json", json.dumps(settings, indent=1) + "\n")

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        if not path.exists():
            raise ValueError(f"{path}: is missing, so the run cannot be resumed")
        try:
            before, now = dict(json.loads(path.read_bytes())), json.loads(json.dumps(settings))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: is damaged, so the run cannot be resumed: {flat(error, 200)}") from error
        other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if other:
            raise ValueError(
                f"{path.parent}: was started with different {', '.join(other)}; "
                "resume with the same, or choose another --out"
            )

    def _resume(self, paths: Iterable[str]) -> None:
        """Check the lines that are there, and cut off an incomplete last one."""
        expected, end = iter(paths), 0
        for number, text in enumerate(self._whole_lines(), 1):
            try:
                path = json.loads(text)["path"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{self._path}: line {number} is damaged") from error
            if path != (wanted := next(expected, None)):
                raise ValueError(
                    f"{self._path}: line {number} is about {path}, expected {wanted or 'no more lines'}: "
                    "the images have changed"
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
    """Encode a line of the file, as ASCII, since file names need not be valid Unicode."""
    return json.dumps(line, allow_nan=False) + "\n"


def error_of(text: str) -> str | None:
    """Return why a line's image could not be decoded, or None. Other lines, which may be long, are not parsed."""
    return json.loads(text).get("error") if '"error": ' in text else None


def encode_batch(batch: ReadBatch, rows: Sequence[list[Row] | str], form: Form) -> list[str]:
    """Encode the lines of a batch from the detections on each of its images, or why there are none."""
    lines = []
    read = zip(batch.sources, rows, batch.sides, batch.errors, batch.several, strict=True)
    for source, found, (width, height), error, several in read:
        line: Line = {"path": source.path, "image_id": source.image_id}
        if isinstance(found, str) and not error:
            error = f"{source.path}: {found}"
        if error or isinstance(found, str):
            line["error"] = error
        else:
            page = {"page": 1} if several else {}
            line |= {**page, "width": width, "height": height, "detections": form.rows(found)}
        lines.append(encode(line))
    return lines
