"""`detops bench masks_to_rle`: COCO's RLE and pasted masks of an image's detections, against pasting as in Detectron2.

The baseline of RLE pastes, copies to the host, and encodes by pycocotools, as evaluations do today; it is left out if
pycocotools is not installed.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from detops import ops
from detops.apps import require
from detops.apps.bench import paste_masks
from detops.apps.bench.paste_masks import case, grid_sample_paste, masks_and_boxes
from detops.apps.bench.runner import Case
from detops.masks.instance_masks import InstanceMasks
from detops.portable.masks_to_rle import masks_to_rle as portable

TESTS = ("tests/ops/test_masks_to_rle.py", "tests/ops/test_paste_masks.py", "tests/library/test_instance_masks.py")
IMAGES = ((800, 1333), (2304, 3840))


def usual_sides(image_size: tuple[int, int]) -> Tensor:
    """Return sides from 2 % to half of an image's longer one, equally many per octave."""
    share = torch.rand(paste_masks.COUNT, generator=torch.Generator().manual_seed(1))
    return max(image_size) * 0.02 * 25**share


def encode(pasted: Tensor) -> list[Any]:
    """Encode pasted masks by pycocotools, one after another, as Detectron2 and MMDetection do."""
    numpy, coco = (
        require("numpy", "numpy", "bench masks_to_rle"),
        require("pycocotools.mask", "pycocotools", "bench masks_to_rle"),
    )
    return [coco.encode(numpy.asfortranarray(mask)) for mask in pasted.cpu().numpy().view("uint8")]


def rle_case(image_size: tuple[int, int], device: str, kernel: bool) -> Case:
    """Return the case of RLE; the floor copies the raw masks. On a GPU the op alone leaves the strings there."""
    masks, boxes = masks_and_boxes(usual_sides(image_size), image_size, device)
    labels = torch.zeros(paste_masks.COUNT, dtype=torch.int64, device=device)
    found = InstanceMasks(boxes, labels, boxes[:, 0], masks, image_size)
    baselines: dict[str, Callable[[], object]] = {}
    if find_spec("numpy") and find_spec("pycocotools"):
        baselines["grid_sample"] = lambda: encode(grid_sample_paste(masks, boxes, image_size))
    baselines["batched PyTorch"] = lambda: portable(masks, boxes, *image_size, 0.5, True)
    ours = (lambda: ops.masks_to_rle(masks, boxes, *image_size, 0.5, True)) if kernel else found.to_rle
    name = f"RLE of {paste_masks.COUNT}, {image_size[0]}x{image_size[1]}"
    return Case(name, ours, masks.clone, baselines, "copy of masks")


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield pasting, then RLE, for each size of image; with `kernel`, ours is the op alone."""
    for image_size in IMAGES[: 1 if quick else None]:
        name = f"paste {paste_masks.COUNT}, {image_size[0]}x{image_size[1]}"
        yield case(name, usual_sides(image_size), image_size, device, kernel, batched=False)
        yield rle_case(image_size, device, kernel)
