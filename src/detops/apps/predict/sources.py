"""The images to detect on, with their ids in the results.

paths, records of an annotation file -> Source
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detops.apps.data.coco import ImageRecord
from detops.apps.data.images import Size

Id = int | str


class Source(NamedTuple):
    """An image to detect on: its path as the user gave it, its id in the results, and its recorded size if any."""

    path: str
    image_id: Id
    recorded: Size | None = None


def sources(paths: Iterable[str], records: Sequence[ImageRecord] = ()) -> Iterator[Source]:
    """Give each image its id.

    An image has the id of the record whose file name ends as its path does; the longest common end decides. An image
    without such a record, or with several, has the highest id of the records plus its own position, counted from 1.

    Args:
        paths: Paths of the images.
        records: Images of an annotation file; without them, the first image has id 1.
    """
    ids = _ids_by_ending(records)
    highest = max((record.id for record in records if isinstance(record.id, int)), default=0)
    for number, path in enumerate(paths, highest + 1):
        known = (ids[ending] for ending in _endings(path) if ids.get(ending) is not None)
        found = next(known, None)
        yield Source(path, number if found is None else found)


def _ids_by_ending(records: Sequence[ImageRecord]) -> dict[str, Id | None]:
    """Map the ends of file names to ids, and an end that several files share to None."""
    ids: dict[str, Id | None] = {}
    for record in records:
        for ending in _endings(record.file_name):
            ids[ending] = None if ending in ids else record.id
    ids.update({Path(record.file_name).as_posix(): record.id for record in records})
    return ids


def _endings(path: str) -> Iterator[str]:
    """Yield the path, then what is left of it without its first folders: "a/b/c", "b/c", "c"."""
    parts = Path(path).parts
    return (Path(*parts[start:]).as_posix() for start in range(len(parts)))
