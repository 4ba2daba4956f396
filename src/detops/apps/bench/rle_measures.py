"""`detops bench rle_measures`: areas and boxes of masks from run lengths, against batched PyTorch and pycocotools.

pycocotools reads the compressed strings, and is left out where it is not installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from detops import ops
from detops.apps import require
from detops.apps.bench import maps_to_rle
from detops.apps.bench.maps_to_rle import maps_of_objects
from detops.apps.bench.runner import Case
from detops.geometry.resizing import bilinear_positions
from detops.masks.results import strings
from detops.portable.rle_measures import rle_measures as portable

TESTS = ("tests/ops/test_rle_measures.py",)
IMAGES = ((640, 640), (1080, 1920))
CELLS = 108


def run_lengths(image_size: tuple[int, int], device: str, compress: bool = False) -> tuple[Tensor, Tensor]:
    """Counts, or characters, of objects in an image, and where those of each begin."""
    maps = maps_of_objects(CELLS).to(device)
    y, x = (bilinear_positions(0, CELLS, length, maps.device) for length in image_size)
    return ops.maps_to_rle(maps, y, x, None, None, None, 0.0, compress)


def coco_masks(image_size: tuple[int, int], device: str) -> list[dict[str, Any]]:
    """The same in COCO's form."""
    return [{"size": [*image_size], "counts": text} for text in strings(*run_lengths(image_size, device, True))]


def case(image_size: tuple[int, int], device: str) -> Case:
    """Areas and boxes of the masks of an image; the floor copies the counts."""
    counts, offsets = run_lengths(image_size, device)
    baselines: dict[str, Callable[[], object]] = {"batched PyTorch": lambda: portable(counts, offsets, *image_size)}
    if find_spec("pycocotools"):
        coco, masks = (
            require("pycocotools.mask", "pycocotools", "bench rle_measures"),
            coco_masks(image_size, device),
        )
        # Its area of a list of 256 masks or more raises with NumPy 2.
        baselines["pycocotools"] = lambda: (
            [coco.area(mask) for mask in masks], coco.toBbox(masks),
        )  # fmt: skip
    return Case(
        f"{maps_to_rle.COUNT} masks, {image_size[0]}x{image_size[1]}",
        lambda: ops.rle_measures(counts, offsets, *image_size),
        counts.clone, baselines, "copy of counts",
    )  # fmt: skip


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one configuration per size of image."""
    for image_size in IMAGES[: 1 if quick else None]:
        yield case(image_size, device)
