"""`detops bench rle_overlaps`: pixels that pairs of masks share, against batched PyTorch and pycocotools' IoU.

pycocotools reads the compressed strings, and is left out where it is not installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

from detops import ops
from detops.apps import require
from detops.apps.bench import maps_to_rle
from detops.apps.bench.rle_measures import coco_masks, run_lengths
from detops.apps.bench.runner import Case
from detops.portable.rle_overlaps import rle_overlaps as portable

TESTS = ("tests/ops/test_rle_overlaps.py",)
IMAGES = ((640, 640), (1080, 1920))


def case(image_size: tuple[int, int], device: str) -> Case:
    """All masks of an image against a copy of all; the floor copies the counts."""
    runs = run_lengths(image_size, device)
    others = runs[0].clone(), runs[1].clone()  # of the same tensors half the pairs would do
    baselines: dict[str, Callable[[], object]] = {"batched PyTorch": lambda: portable(*runs, *others, *image_size)}
    if find_spec("pycocotools"):
        coco, masks = (
            require("pycocotools.mask", "pycocotools", "bench rle_overlaps"),
            coco_masks(image_size, device),
        )
        baselines["pycocotools"] = lambda: coco.iou(masks, masks, [False] * len(masks))
    return Case(
        f"{maps_to_rle.COUNT} x {maps_to_rle.COUNT} masks, {image_size[0]}x{image_size[1]}",
        lambda: ops.rle_overlaps(*runs, *others, *image_size),
        runs[0].clone, baselines, "copy of counts",
    )  # fmt: skip


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Yield one configuration per size of image: all masks against all."""
    for image_size in IMAGES[: 1 if quick else None]:
        yield case(image_size, device)
