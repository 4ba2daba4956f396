"""Masks in boxes for the tests, and the pixels that other libraries give for them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from detops import InstanceMasks
from detops.masks.placement import Mode

Size = tuple[int, int]


def coco() -> Any:
    """Import COCO's masks; where pycocotools is not installed, the test that needs it is skipped."""
    return pytest.importorskip("pycocotools.mask")


def mask_scene(
    seed: int,
    count: int = 4,
    mask_size: Size = (5, 7),
    image_size: Size = (23, 31),
    dtype: torch.dtype = torch.float32,
    box_dtype: torch.dtype = torch.float32,
    ties: bool = False,
    odd: bool = False,
    spread: float = 1.6,
) -> tuple[Tensor, Tensor, int, int]:
    """Make masks and boxes in and around an image.

    With `ties`, masks are eighths or tenths and boxes whole or half pixels, so that many values meet the threshold and
    rounding decides; with `odd`, some boxes are empty, inverted, huge, NaN or infinite, and some cells of masks NaN,
    infinite or out of 0 .. 1.
    """
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor(image_size[::-1], dtype=torch.float32)
    masks = torch.rand(count, *mask_size, generator=g)
    low = (torch.rand(count, 2, generator=g) * spread - (spread - 1) / 2) * size
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=g) * spread * size], 1)
    if ties:
        parts = 8 + 2 * (seed % 2)
        masks, boxes = (masks * parts).round() / parts, (boxes * 2).round() / 2
    if odd and count:
        kind = torch.randint(9, (count,), generator=g)
        boxes[kind == 0, 2] = boxes[kind == 0, 0]
        boxes[kind == 1] = boxes[kind == 1][:, [2, 3, 0, 1]]
        boxes[kind == 2, 1] = float("nan")
        boxes[kind == 3, 2] = float("inf")
        boxes[kind == 4] = torch.tensor([-1e9, -1e9, 1e9, 1e9])
        boxes[kind == 5, 2:] = 3e38
        boxes[kind == 6, 3] = boxes[kind == 6, 1] + 1e-3
        cell = torch.randint(12, masks.shape, generator=g)
        for value, number in enumerate((float("nan"), float("inf"), -float("inf"), 3e38, -3e38)):
            masks[(cell == value) & (kind == 7)[:, None, None]] = number
    return masks.to(dtype), boxes.to(box_dtype), *image_size


def scenes_of(counts: Sequence[int], image_sizes: Sequence[Size]) -> st.SearchStrategy[tuple[Tensor, Tensor, int, int]]:
    """Scenes of these numbers of masks, in images of these sizes."""
    return st.builds(
        mask_scene,
        seed=st.integers(0, 10**6),
        count=st.sampled_from(counts),
        mask_size=st.sampled_from([(1, 1), (1, 6), (5, 7), (28, 28)]),
        image_size=st.sampled_from(image_sizes),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
        box_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
        ties=st.booleans(),
        odd=st.booleans(),
        spread=st.sampled_from([0.3, 1.6, 5.0]),
    )


scenes = scenes_of([0, 1, 4, 9], [(1, 1), (1, 40), (40, 1), (23, 31), (70, 150)])
THRESHOLDS = (0.5, 0.1, 0.9, 1.0, 1e-6)


def one_mask(
    box: Sequence[float], value: float = 1.0, size: Size = (6, 8), threshold: float = 0.5
) -> tuple[Tensor, Tensor, int, int, float]:
    """Make a mask of one value in a box, and a threshold: the arguments of the ops."""
    return torch.full((1, 4, 4), value), torch.tensor([box], dtype=torch.float32), *size, threshold


CASES: dict[
    str, tuple[list[float], Sequence[int], Sequence[int]]
] = {  # box -> columns and rows that a mask of ones fills in an image of 6 x 8
    "whole pixels": ([2.0, 1, 6, 4], range(2, 6), range(1, 4)),
    "centres decide": ([1.5, 0.6, 5.4, 3.4], range(1, 5), range(1, 3)),
    "partly outside": ([-4.0, -9, 3, 2], range(3), range(2)),
    "larger than the image": ([-50.0, -50, 60, 60], range(8), range(6)),
    "huge": ([-1e9, -1e9, 1e9, 1e9], range(8), range(6)),
    "beyond int64": ([-1e30, -1e30, 1e30, 1e30], range(8), range(6)),
    "outside at the left": ([-9.0, 1, -2, 4], (), ()),
    "outside below": ([2.0, 20, 6, 30], (), ()),
    "far outside": ([1e12, 1, 2e12, 4], (), ()),
    "no width": ([2.0, 1, 2, 4], (), ()),
    "no width on a centre": ([2.5, 1, 2.5, 4], (), ()),
    "thinner than a pixel": ([2.4, 1, 2.6, 4], range(2, 3), range(1, 4)),
    "between centres": ([2.6, 1, 3.4, 4], (), ()),
    "inverted": ([6.0, 4, 2, 1], (), ()),
    "NaN": ([2.0, float("nan"), 6, 4], (), ()),
    "infinite": ([2.0, 1, float("inf"), 4], (), ()),
    "all infinite": ([-float("inf")] * 2 + [float("inf")] * 2, (), ()),
}


# Arguments that both ops refuse in place of four masks.
REFUSED: list[dict[str, Any]] = [
    dict(masks=torch.zeros(4, 3)),
    dict(masks=torch.zeros(4, 0, 3)),
    dict(boxes=torch.zeros(4, 3)),
    dict(boxes=torch.zeros(3, 4)),
    dict(height=0),
    dict(width=-1),
    dict(height=2**30),
    dict(threshold=0.0),
    dict(threshold=float("nan")),
    dict(threshold=1e-46),  # 0 in float32
]


def blobs(count: int, image_size: Size, seed: int = 0, mask_size: int = 28) -> tuple[Tensor, Tensor]:
    """Make smooth round masks in boxes of usual sizes, all within the image."""
    g = torch.Generator().manual_seed(seed)
    height, width = image_size
    side = max(image_size) * torch.exp(torch.rand(count, 1, generator=g) * 3.2 - 3.9)
    stretch = torch.exp(torch.rand(count, 1, generator=g) - 0.5)
    half = torch.cat([side * stretch, side / stretch], 1) / 2
    center = torch.rand(count, 2, generator=g) * torch.tensor([width, height])
    boxes = torch.cat([center - half, center + half], 1).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, mask_size)] * 2, indexing="ij")
    edge = 0.8 + 0.15 * torch.sin(3 * torch.atan2(y, x) + 6 * torch.rand(count, 1, 1, generator=g))
    return torch.sigmoid(12 * (edge - torch.hypot(x, y))), boxes


def instances(
    seed: int = 0,
    count: int = 6,
    device: str = "cpu",
    mode: Mode = "detectron2",
    mask_size: Size = (5, 7),
    image_size: Size = (23, 31),
    ties: bool = False,
    odd: bool = False,
) -> InstanceMasks:
    """Return the masks of `mask_scene` as `InstanceMasks`, with random labels of five classes and random scores."""
    masks, boxes, *_ = mask_scene(seed, count, mask_size, image_size, ties=ties, odd=odd)
    g = torch.Generator().manual_seed(seed)
    labels, scores = torch.randint(0, 5, (count,), generator=g), torch.rand(count, generator=g)
    boxes, labels, scores, masks = (t.to(device) for t in (boxes, labels, scores, masks))
    return InstanceMasks(boxes, labels, scores, masks, image_size, mode=mode)


def round_masks(
    count: int = 12, image_size: Size = (120, 200), seed: int = 0, mode: Mode = "detectron2"
) -> InstanceMasks:
    """Return the masks of `blobs` as `InstanceMasks`, each with its own class, the highest score first."""
    masks, boxes = blobs(count, image_size, seed)
    return InstanceMasks(boxes, torch.arange(count), torch.linspace(1, 0, count), masks, image_size, mode=mode)


def full_masks(boxes: list[list[float]] | Tensor, image_size: Size, mode: Mode = "detectron2") -> InstanceMasks:
    """Return masks of ones in boxes, with class 0 and score 1."""
    given = torch.as_tensor(boxes)
    labels, scores = torch.zeros(len(given), dtype=torch.int64), torch.ones(len(given))
    return InstanceMasks(given, labels, scores, torch.ones(len(given), 28, 28), image_size, mode=mode)


def detectron2_values(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Paste like Detectron2's and MMDetection's `_do_paste_mask`, over the whole image, before the threshold: (N, H, W)."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (N, 1) each
    x = (torch.arange(width).to(boxes) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(height).to(boxes) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = (len(boxes), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def torchvision_values(masks: Tensor, boxes: Tensor, image_size: Size) -> Tensor:
    """Paste like torchvision's `paste_masks_in_image`, before any threshold: a border, whole pixels, a resize.

    Boxes are rounded in float32, as in torchvision; masks are resized in float64.
    """
    size = masks.shape[-1]
    pasted = torch.zeros(len(masks), *image_size, dtype=torch.float64)
    center, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((size + 2) / size)
    whole = torch.cat([center - half, center + half], 1).to(torch.int64)
    for n, (x1, y1, x2, y2) in enumerate(whole.tolist()):
        padded = F.pad(masks[n].double(), (1, 1, 1, 1))[None, None]
        large = F.interpolate(padded, size=(y2 - y1 + 1, x2 - x1 + 1), mode="bilinear", align_corners=False)[0, 0]
        left, right = max(x1, 0), min(x2 + 1, image_size[1])
        top, bottom = max(y1, 0), min(y2 + 1, image_size[0])
        if left < right and top < bottom:
            pasted[n, top:bottom, left:right] = large[top - y1 : bottom - y1, left - x1 : right - x1]
    return pasted
