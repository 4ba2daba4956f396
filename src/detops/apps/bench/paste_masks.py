"""`detops bench paste_masks`: masks of 28 x 28 at the image's size, against Detectron2's way and batched PyTorch.

Boxes of several sizes in images of one size, so that the table separates the cost per pixel of a box from that of
filling the result.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.apps.bench.runner import Case
from detops.masks.instance_masks import InstanceMasks
from detops.portable.paste_masks import paste_masks as portable

TESTS = ("tests/ops/test_paste_masks.py", "tests/library/test_instance_masks.py")
COUNT, CELLS = 100, 28
IMAGE = (800, 1333)
SIDES = (32, 128, 512)
CHUNK_BYTES = 2**30  # of values at once on a GPU, as in Detectron2


def masks_and_boxes(sides: Tensor, image_size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Make smooth masks with wavy edges, and boxes with these sides (N,) on average, clipped to the image."""
    g = torch.Generator().manual_seed(0)
    height, width = image_size
    stretch = torch.exp(torch.rand(len(sides), 1, generator=g) - 0.5)
    half = sides[:, None] * torch.cat([stretch, 1 / stretch], 1) / 2
    center = torch.rand(len(sides), 2, generator=g) * torch.tensor([width, height])
    boxes = torch.cat([center - half, center + half], 1).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, CELLS)] * 2, indexing="ij")
    edge = 0.8 + 0.15 * torch.sin(3 * torch.atan2(y, x) + 6 * torch.rand(len(sides), 1, 1, generator=g))
    return torch.sigmoid(12 * (edge - torch.hypot(x, y))).to(device), boxes.to(device)


def grid_sample_paste(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Paste as Detectron2 does: on the CPU box by box, around the box; on a GPU many at once, over the whole image."""
    height, width = image_size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    cpu = masks.device.type == "cpu"
    step = 1 if cpu else max(1, CHUNK_BYTES // (height * width * 4))
    for begin in range(0, len(masks), step):
        part = slice(begin, begin + step)
        x1, y1, x2, y2 = boxes[part, :, None].unbind(1)  # (n, 1) each
        left, top, right, bottom = 0, 0, width, height
        if cpu:
            left, top = max(int(x1.floor()) - 1, 0), max(int(y1.floor()) - 1, 0)
            right, bottom = min(int(x2.ceil()) + 1, width), min(int(y2.ceil()) + 1, height)
        x = (torch.arange(left, right, device=boxes.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, device=boxes.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        shape = (len(x1), bottom - top, right - left)
        grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3)
        value = F.grid_sample(masks[part, None], grid, align_corners=False)[:, 0]
        pasted[part, top:bottom, left:right] = value >= 0.5
    return pasted


def case(name: str, sides: Tensor, image_size: tuple[int, int], device: str, kernel: bool, batched: bool) -> Case:
    """Return the case of pasting all masks; the floor is a result of zeros."""
    masks, boxes = masks_and_boxes(sides, image_size, device)
    labels = torch.zeros(len(masks), dtype=torch.int64, device=device)
    found = InstanceMasks(boxes, labels, boxes[:, 0], masks, image_size)
    baselines = {"grid_sample": lambda: grid_sample_paste(masks, boxes, image_size)}
    if batched:
        baselines["batched PyTorch"] = lambda: portable(masks, boxes, *image_size, 0.5)
    ours = (lambda: ops.paste_masks(masks, boxes, *image_size, 0.5)) if kernel else found.paste

    def fill() -> Tensor:
        return torch.zeros(len(masks), *image_size, dtype=torch.bool, device=device)

    return Case(name, ours, fill, baselines, "zero fill")


def cases(device: str, kernel: bool, quick: bool) -> Iterator[Case]:
    """Yield one configuration per size of boxes; with `kernel`, ours is the op alone."""
    for side in SIDES[: 1 if quick else None]:
        name = f"{COUNT} boxes of {side} pixels, {IMAGE[0]}x{IMAGE[1]}"
        yield case(name, torch.full((COUNT,), float(side)), IMAGE, device, kernel, batched=True)
