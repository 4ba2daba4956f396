"""The images to detect on, with their ids in the results.

paths, records of an annotation file -> Source
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from detops.apps.data.coco import ImageRecord
from detops.apps.data.compare import HEADS
from detops.apps.data.images import Size, facts
from detops.apps.data.problems import quoted

if TYPE_CHECKING:
    from PIL.Image import Image

Id = int | str


class Source(NamedTuple):
    """An image to detect on.

    Attributes:
        path: Its path as the user gave it.
        image_id: Its id in the results.
        recorded: Its recorded size, if any.
        image: The image itself, where it is no file.
    """

    path: str
    image_id: Id
    recorded: Size | None = None
    image: Optional["Image"] = None


class Sources:
    """The images to detect on, each with its id; can be iterated several times.

    An image has the id of the record whose file name ends as its path does; the longest common end decides. An image
    without such a record, or with several, has the highest id of the records plus its own position, counted from 1.

    Args:
        paths: Paths of the images.
        records: Images of an annotation file; without them, the first image has id 1.

    Raises:
        ValueError: During iteration: two images would have one id, so that each detection would count twice.
    """

    def __init__(self, paths: Iterable[str], records: Sequence[ImageRecord] = ()) -> None:
        self._paths, self._records = paths, _by_ending(records)
        self._highest = max((record.id for record in records if isinstance(record.id, int)), default=0)

    def __iter__(self) -> Iterator[Source]:
        given: dict[Id, str] = {}
        for number, path in enumerate(self._paths, self._highest + 1):
            known = (self._records[ending] for ending in _endings(path) if self._records.get(ending) is not None)
            found = next(known, None)
            if found is None:
                yield Source(path, number)
                continue
            if found.id in given:
                raise ValueError(
                    f"annotations: {given[found.id]} and {path} would both be image {quoted(found.id)} of the file"
                )
            given[found.id] = path
            yield Source(path, found.id, found.size)


def resized(sources: Iterable[Source], heads: int = HEADS) -> list[str]:
    """List the first images that have another size than recorded, so that their detections do not fit the records."""
    found = []
    for source in islice((one for one in sources if one.recorded is not None), heads):
        with suppress(ValueError):  # what cannot be read has a line of its own later
            width, height = facts(source.path, source.recorded).size
            if source.recorded is not None and (width, height) != source.recorded:
                found.append(f"{source.path} is {width} x {height}, recorded as {'{} x {}'.format(*source.recorded)}")
    return found


def unknown(sources: Iterable[Source]) -> tuple[int, str]:
    """Count the images that no record names, and return the first of them."""
    count, first = 0, ""
    for source in sources:
        if source.recorded is None:
            count, first = count + 1, first or source.path
    return count, first


def _by_ending(records: Sequence[ImageRecord]) -> dict[str, ImageRecord | None]:
    """Map the ends of file names to records, and an end that several files share to None."""
    by_ending: dict[str, ImageRecord | None] = {}
    whole: dict[str, ImageRecord | None] = {}
    for record in records:
        name = record.file_name.replace("\\", "/")
        for ending in _endings(name):
            by_ending[ending] = None if ending in by_ending else record
        full = Path(name).as_posix()
        whole[full] = None if full in whole else record
    return by_ending | whole


def _endings(path: str) -> Iterator[str]:
    """Yield the path, then what is left of it without its first folders: "a/b/c", "b/c", "c"."""
    parts = Path(path).parts
    return (Path(*parts[start:]).as_posix() for start in range(len(parts)))
