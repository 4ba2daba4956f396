"""What is detected on: the images of files and folders, or the frames of a stream.

names -> Listing or Stream -> Sources -> batches
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from detops.apps import warn
from detops.apps.data import coco
from detops.apps.data.ids import Id
from detops.apps.data.live import Stream, is_stream
from detops.apps.predict.listing import Listing
from detops.apps.predict.sources import Source, Sources, resized, unknown


@dataclass(frozen=True)
class Input:
    """What is detected on.

    Attributes:
        sources: The images, with their ids.
        paths: Paths of the images; those of a stream are not known before.
        total: Number of images; None for a stream.
        in_order: Whether one process must read them in order, as the frames of a video.
        stream: The stream, if it is one.
        names: Names of categories by id, of an annotation file.
    """

    sources: Iterable[Source]
    paths: Iterable[str] = ()
    total: int | None = None
    in_order: bool = True
    stream: Stream | None = None
    names: dict[Id, str] = field(default_factory=dict)


def open_input(images: Sequence[Path | str], annotations: Path | None, console: Console) -> Input:
    """List files and folders, or open a stream.

    Args:
        images: Files and folders, or one stream.
        annotations: COCO file with the ids of the images, and names of categories.
        console: Where to print what was left out, and what does not fit.

    Raises:
        FileNotFoundError: There is no such file, or no image.
        ModuleNotFoundError: A package that reads them is missing.
        ValueError: The stream cannot be read, or is not alone; or the annotation file is invalid.
    """
    streams = [str(one) for one in images if is_stream(str(one))]
    if streams:
        if len(images) > 1:
            raise ValueError(f"images: expected a stream alone, got {streams[0]} and {len(images) - 1} more")
        names = {} if annotations is None else _names(coco.read(annotations))
        stream = Stream(streams[0])
        stream.tell(console)
        return Input(_frames(stream), stream=stream, names=names)
    listing = Listing([Path(one) for one in images])
    listing.tell(console)
    sources, names = (Sources(listing), {}) if annotations is None else _numbered(listing, annotations, console)
    return Input(sources, listing, len(listing), listing.videos, names=names)


def _frames(stream: Stream) -> Iterator[Source]:
    for number, (name, image) in enumerate(stream, 1):
        yield Source(name, number, image=image)


def _numbered(listing: Listing, path: Path, console: Console) -> tuple[Sources, dict[Id, str]]:
    """Give the images the ids of an annotation file, and tell which do not fit it; return its categories' names too."""
    annotations = coco.read(path)
    annotations.accept(path, console, strict=False, objects=False)
    sources = Sources(listing, annotations.images)
    other = resized(sources)
    if other:
        warn(console, f"{len(other):,} images have another size than {path} records: {other[0]}")
    count, first = unknown(sources)
    if count:
        warn(console, f"{count:,} images get ids of their own, as {path} does not name them: {first}")
    return sources, _names(annotations)


def _names(annotations: coco.Annotations) -> dict[Id, str]:
    return dict(zip(annotations.category_ids, annotations.class_names, strict=True))
