"""nms, batched_nms and nms_mask: the boxes they keep, comparison with torchvision, and their errors."""

import importlib
from collections.abc import Callable
from typing import Any

import loaded_torchvision
import numpy as np
import pytest
import torch
from torch import Tensor

import detops

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 5, 3], [20, 20, 30, 30]])
SCORES = torch.tensor([0.8, 0.9, 0.2, 0.1])


def crowd(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make boxes that overlap, scores, and labels of four classes."""
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=g) * 40
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=g) * 30], -1)
    return boxes, torch.rand(count, generator=g), torch.randint(-1, 3, (count,), generator=g)


def test_by_hand() -> None:
    """The IoU of the first two is 81 / 100; the third overlaps only the first, which is dropped."""
    assert detops.nms(BOXES, SCORES, 0.5).tolist() == [1, 2, 3]
    assert detops.nms(BOXES, SCORES, 0.81).tolist() == [1, 0, 2, 3]  # strictly above
    assert detops.nms(BOXES, SCORES, 0.0).tolist() == [1, 3]
    assert detops.nms(BOXES, torch.ones(4), 0.5).tolist() == [0, 2, 3]  # ties: the lower index
    assert detops.nms(BOXES[:0], SCORES[:0], 0.5).tolist() == []
    labels = torch.tensor([0, 1, 0, 1])
    assert detops.batched_nms(BOXES, SCORES, labels, 0.1).tolist() == [1, 0, 3]
    assert detops.nms_mask(BOXES, SCORES, 0.1, labels).tolist() == [True, True, False, True]
    valid = torch.tensor([True, False, True, True])
    assert detops.nms_mask(BOXES, SCORES, 0.5, valid=valid).tolist() == [True, False, True, True]


def test_scores_without_order_come_last() -> None:
    scores = torch.tensor([float("nan"), 0.9, -0.2, float("-inf")])
    assert detops.nms(BOXES, scores, 0.9).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_large_boxes_and_labels_in_half_precision(dtype: torch.dtype) -> None:
    """float16 holds neither the area of a large box nor a box that is shifted by its label."""
    boxes = torch.tensor([[0, 0, 1000, 1000], [5, 5, 1000, 1000], [3000, 3000, 3500, 3500]], dtype=dtype)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=dtype)
    assert detops.nms(boxes, scores, 0.5).tolist() == [0, 2]
    assert detops.batched_nms(boxes, scores, torch.tensor([18, 18, 10**6]), 0.5).tolist() == [0, 2]
    assert detops.batched_nms(boxes, scores, torch.tensor([18, 17, 10**6]), 0.5).tolist() == [0, 1, 2]


def per_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress as torchvision's vanilla form does: class after class, then sort by score."""
    kept = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        kept.append(rows[detops.nms(boxes[rows], scores[rows], threshold)])
    rows = torch.cat(kept).sort().values
    return rows[scores[rows].sort(descending=True, stable=True).indices]


def test_batched_nms_is_nms_of_each_class() -> None:
    boxes, scores, labels = crowd(2, 200)
    kept = detops.batched_nms(boxes, scores, labels, 0.4)
    assert 20 < len(kept) < 180
    assert torch.equal(kept, per_class(boxes, scores, labels, 0.4))


def test_torchvision_agrees() -> None:
    if not loaded_torchvision.has_compiled_operators():
        pytest.skip("torchvision's compiled operators do not load here")
    ops = importlib.import_module("torchvision.ops")
    boxes, scores, labels = crowd(3, 300)
    assert torch.equal(detops.nms(boxes, scores, 0.5), ops.nms(boxes, scores, 0.5))
    assert torch.equal(
        detops.batched_nms(boxes, scores, labels, 0.5), ops.boxes._batched_nms_vanilla(boxes, scores, labels, 0.5)
    )


def test_an_iou_that_is_the_threshold_drops_nothing() -> None:
    """As in torchvision's CUDA kernel; its CPU kernel keeps one of these, since 0.2 in float32 is above 0.2."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 10]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        assert detops.nms(boxes.to(dtype), torch.tensor([0.9, 0.8]), 0.2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(4)}, ValueError, r"boxes: expected shape \(B, N, 4\) or \(N, 4\), got \(4,\)"),
        (
            {"boxes": torch.zeros(3, 4, dtype=torch.int64)},
            TypeError,
            "boxes: expected a floating-point tensor, got int64",
        ),
        ({"boxes": np.zeros((3, 4))}, TypeError, "boxes: expected a floating-point tensor, got ndarray"),
        ({"scores": torch.zeros(2)}, ValueError, r"scores: expected shape \(3,\) to match boxes, got \(2,\)"),
        ({"scores": None}, TypeError, "scores: expected a floating-point tensor, got NoneType"),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected integers, got float32"),
        ({"valid": torch.zeros(3)}, TypeError, "valid: expected a bool tensor, got float32"),
        ({"iou_threshold": float("nan")}, ValueError, "iou_threshold: expected a number, got nan"),
        ({"iou_threshold": None}, TypeError, "iou_threshold: expected a number, got None"),
        ({"iou_threshold": (0.5, 0.6)}, TypeError, r"iou_threshold: expected a number, got \(0.5, 0.6\)"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = dict(boxes=torch.zeros(3, 4), scores=torch.zeros(3), iou_threshold=0.5)
    with pytest.raises(error, match=message):
        detops.nms_mask(**arguments | change)


def nms(boxes: Any, scores: Any, idxs: Any) -> Tensor:
    return detops.nms(boxes, scores, 0.5)


def batched_nms(boxes: Any, scores: Any, idxs: Any) -> Tensor:
    return detops.batched_nms(boxes, scores, idxs, 0.5)


@pytest.mark.parametrize("function", [nms, batched_nms])
def test_one_image_at_a_time(function: Callable[[Any, Any, Any], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"boxes: expected shape \(N, 4\), got \(1, 3, 4\)"):
        function(torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="boxes: expected a floating-point tensor, got list"):
        function([[0.0, 0, 1, 1]], torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_errors_of_batched_nms_name_its_own_argument() -> None:
    with pytest.raises(TypeError, match="idxs: expected integers, got float32"):
        batched_nms(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"idxs: expected shape \(3,\) to match boxes, got \(2,\)"):
        batched_nms(torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, dtype=torch.int64))
