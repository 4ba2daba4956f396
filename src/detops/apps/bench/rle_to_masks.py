"""`detops bench rle_to_masks`: pixels from run lengths, against batched PyTorch and pycocotools.

pycocotools reads the compressed strings, and is left out where it is not installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch

from detops import ops
from detops.apps import require
from detops.apps.bench import maps_to_rle
from detops.apps.bench.rle_measures import coco_masks, run_lengths
from detops.apps.bench.runner import Case
from detops.portable.rle_to_masks import rle_to_masks as portable

TESTS = ("tests/ops/test_rle_to_masks.py",)
IMAGES = ((640, 640), (1080, 1920))


def case(image_size: tuple[int, int], device: str) -> Case:
    """Pixels of the masks of an image; the floor is a result of zeros."""
    arguments = (*run_lengths(image_size, device), *image_size, 0, 0, *image_size, False)
    baselines: dict[str, Callable[[], object]] = {"batched PyTorch": lambda: portable(*arguments)}
    if find_spec("pycocotools"):
        coco, masks = (
            require("pycocotools.mask", "pycocotools", "bench rle_to_masks"),
            coco_masks(image_size, device),
        )
        baselines["pycocotools"] = lambda: coco.decode(masks)
    return Case(
        f"{maps_to_rle.COUNT} masks, {image_size[0]}x{image_size[1]}",
        lambda: ops.rle_to_masks(*arguments),
        lambda: torch.zeros(maps_to_rle.COUNT, *image_size, dtype=torch.bool, device=device),
        baselines, "zero fill",
    )  # fmt: skip


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one configuration per size of image; the floor is a result of zeros."""
    for image_size in IMAGES[: 1 if quick else None]:
        yield case(image_size, device)
