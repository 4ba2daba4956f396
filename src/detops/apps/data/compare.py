"""Records compared with the image files: which files they are, and whether size, orientation and depth fit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from detops.apps.data.coco import Annotations
from detops.apps.data.images import DEEP, Facts, facts
from detops.apps.data.layouts import Locator
from detops.apps.data.problems import Level, quoted
from detops.apps.data.records import ImageRecord

HEADS = 5000  # files whose heads are read where not all need be: about a second


def find_images(annotations: Annotations, folder: Path, heads: int | None, keep_all: bool = False) -> Annotations:
    """Leave out images that are not there or cannot be opened, and note others that differ from their records.

    Args:
        annotations: A whole file. Its problems get those that are found here.
        folder: Folder of the images.
        heads: Largest number of files to open, evenly spread; None opens all.
        keep_all: Keep the others too: their annotations are used without the image.

    Returns:
        The annotations of the images that are there, under the names of their files.

    Raises:
        ValueError: With `keep_all`, no image is there.
    """
    locator = Locator(folder, [image.file_name for image in annotations.images])
    found = [locator.find(image.file_name) for image in annotations.images]
    problems = annotations.problems

    def place(row: int) -> str:
        image = annotations.images[row]
        return f"image {quoted(image.id)}, {quoted(image.file_name)}"

    missing = [row for row, name in enumerate(found) if name is None]
    lost, level = ("have", Level.DOUBTFUL) if keep_all else ("left out,", Level.LEFT_OUT)
    problems.add("image: no file", level, f"images {lost} no file in {folder}", missing, place)
    if keep_all and found and len(missing) == len(found):
        raise ValueError(f"images: found none of the {len(found):,} images in {folder}, such as {place(0)}")
    there = [row for row, name in enumerate(found) if name is not None]
    step = 1 if heads is None else max(1, -(-len(there) // heads))
    read = _read_heads(annotations.images, there[::step], [found[row] or "" for row in there[::step]], folder)
    damaged = [row for row, fact in read.items() if isinstance(fact, str)]
    problems.add(
        "image: damaged", level, f"images {lost} a damaged file", damaged, lambda row: f"{place(row)}, {read[row]}"
    )
    good = {row: fact for row, fact in read.items() if isinstance(fact, Facts)}
    sample = "" if step == 1 else f" of {len(good):,} that were opened"
    resized = [row for row, fact in good.items() if fact.size != annotations.images[row].size]

    def sizes(row: int) -> str:
        (width, height), image = good[row].size, annotations.images[row]
        return f"{place(row)} is {width} x {height}, recorded as {image.width} x {image.height}"

    problems.add(
        "image: another size", Level.DOUBTFUL, f"images{sample} have another size than the file records", resized, sizes
    )  # fmt: skip
    turned = [row for row, fact in good.items() if fact.turned]
    problems.add(
        "image: turned",
        Level.NOTE,
        f"images{sample} are turned upright, as their EXIF orientation says, before their size is compared",
        turned,
    )
    deep = [row for row, fact in good.items() if fact.mode in DEEP]
    problems.add("image: deep", Level.NOTE, f"images{sample} of more than 8 bits per channel are scaled to 8", deep)
    gone = set() if keep_all else {*missing, *damaged}
    kept = [row for row in range(len(found)) if row not in gone]
    images = [
        replace(annotations.images[row], file_name=found[row] or annotations.images[row].file_name) for row in kept
    ]
    return annotations.at(kept, images)


def _read_heads(images: list[ImageRecord], rows: list[int], names: list[str], folder: Path) -> dict[int, Facts | str]:
    """Return the facts about some images, or why a file is no image, by position."""

    def read(pair: tuple[int, str]) -> Facts | str:
        row, name = pair
        try:
            return facts(folder / name, images[row].size)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:  # which waits for slow disks, not for processors
        return dict(zip(rows, pool.map(read, zip(rows, names, strict=True)), strict=True))
