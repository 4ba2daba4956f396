"""PyTorch's default dtype, which some programs set to bfloat16 or float64, is that of no tensor of ours."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from op import assert_same_bits, default_dtype
from test_criteria import CLASSES, CRITERIA, SHAPES, SIDE, STRIDES, boxes_of, regions_of

import detops
from detops import GroundTruth, InstanceMasks

G = torch.Generator().manual_seed(0)
SIZES = [(SIDE, SIDE), (SIDE - 9, SIDE - 24)]
BOXES = torch.tensor([[2.0, 1, 26, 34], [7, 9, 31, 40], [3, 2, 27, 33]])
SCORES = torch.tensor([0.8, 0.7, 0.6])
PIXELS = torch.randint(256, (3, 21, 35), generator=G, dtype=torch.uint8)
ANCHORS, POINTS = detops.grid_anchors(SHAPES, STRIDES, 4.0), detops.grid_points(SHAPES, STRIDES)
LEVELS = [height * width for height, width in SHAPES]


def maps(*channels: int) -> list[list[torch.Tensor]]:
    return [[torch.randn(2, c, *shape, generator=G) for shape in SHAPES] for c in channels]


SCORE_MAPS, SIDE_MAPS, ROWS = maps(CLASSES, 20, 5 + CLASSES)
OUTPUTS = [row.permute(0, 2, 3, 1)[:, None].contiguous() for row in ROWS]
HEATMAP, WH = (torch.randn(2, c, 16, 16, generator=G) for c in (CLASSES, 2))
TRUTH = GroundTruth.from_boxes(*boxes_of(3), ignored=regions_of(3), image_sizes=SIZES)
MASKS = InstanceMasks(BOXES, torch.tensor([1, 0, 1]), SCORES, torch.rand(3, 28, 28, generator=G), (48, 40))


def criterion(name: str) -> Callable[[], Any]:
    """Losses and gradients of a new criterion, which has kept nothing."""
    maps, call = CRITERIA[name](0)

    def run() -> Any:
        losses = call(TRUTH)
        first = torch.stack([loss.reshape(-1)[0] for loss in losses.values()])
        return losses, torch.autograd.grad(first.sum(), maps)

    return run


MAKE: dict[str, Callable[[], Callable[[], Any]]] = {
    **{name: partial(criterion, name) for name in CRITERIA},
    "centernet_targets": lambda: lambda: detops.centernet_targets(TRUTH, (16, 16), (SIDE, SIDE), CLASSES)[:4],
    "atss_assign": lambda: lambda: detops.atss_assign(ANCHORS, LEVELS, TRUTH, CLASSES)[:3],
    "decode_centernet": lambda: lambda: detops.decode_centernet(HEATMAP, WH, WH, (SIDE, SIDE), image_sizes=SIZES),
    "decode_yolox": lambda: lambda: detops.decode_yolox(OUTPUTS, STRIDES, image_sizes=SIZES),
    "decode_gfl": lambda: lambda: detops.decode_gfl(SCORE_MAPS, SIDE_MAPS, STRIDES, image_sizes=SIZES),
    "nms": lambda: lambda: detops.nms(BOXES, SCORES, 0.5),
    "paste": lambda: MASKS.paste,
    "preprocess": lambda: lambda: detops.preprocess([PIXELS], size=(48, 33), mean=(1, 2, 3), std=(4, 5, 6)).images,
    "grids": lambda: lambda: (detops.grid_anchors(SHAPES, STRIDES, 4.0), detops.grid_points(SHAPES, STRIDES)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_the_default_dtype_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    expected, call = MAKE[name]()(), MAKE[name]()
    with default_dtype(dtype):
        found = call()
    assert_same_bits(found, expected)
