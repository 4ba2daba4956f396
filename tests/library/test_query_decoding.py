"""decode_query_masks: what rf-detr's post-processing returns, without its pixels."""

from typing import Any

import pytest
import torch
from map_scenes import encoded, interpolated
from torch import Tensor

from detops import decode_query_masks

SIZES = [(60, 80), (33, 21)]


def outputs(seed: int = 0, queries: int = 9, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits in halves, so that many are equal; masks and boxes, some of which leave the image."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, queries, classes, generator=g) * 2).round() / 2
    return logits, torch.randn(2, queries, 12, 12, generator=g), torch.rand(2, queries, 4, generator=g)


def as_rfdetr(
    logits: Tensor, masks: Tensor, boxes: Tensor, most: int, least: float
) -> list[tuple[list[float], list[int], Tensor, Tensor]]:
    """Its steps, one pair of query and class after another."""
    results = []
    for b, (height, width) in enumerate(SIZES):
        p = logits[b].sigmoid().flatten().tolist()
        best = sorted(range(len(p)), key=lambda i: (-p[i], i))[:most]
        best = [i for i in best if p[i] > least]
        classes = logits.shape[2]
        query = [i // classes for i in best]
        cx, cy, w, h = boxes[b, query].unbind(1)
        corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
        corners = corners * torch.tensor([width, height, width, height])
        corners = torch.stack([corners[:, 0::2].clamp(0, width), corners[:, 1::2].clamp(0, height)], 2).flatten(1)
        pixels = interpolated(masks[b, query], (height, width)) > 0
        results.append(([p[i] for i in best], [i % classes for i in best], corners, pixels))
    return results


@pytest.mark.parametrize(("most", "least"), [(300, 0.0), (7, 0.0), (300, 0.5), (5, 0.99), (0, 0.0)])
def test_is_what_rfdetr_makes(most: int, least: float) -> None:
    for seed in range(3):
        args = outputs(seed)
        found = decode_query_masks(*args, SIZES, max_detections=most, score_threshold=least)
        assert len(found) == 2
        for ours, (scores, labels, boxes, pixels) in zip(found, as_rfdetr(*args, most, least), strict=True):
            assert ours.scores.tolist() == scores
            assert ours.labels.tolist() == labels
            torch.testing.assert_close(ours.boxes, boxes)
            assert [rle["counts"] for rle in ours.to_rle()] == encoded(pixels)


def test_half_precision_is_computed_in_float32() -> None:
    args = [t.half() for t in outputs()]
    ours = decode_query_masks(*args, SIZES)
    theirs = decode_query_masks(*(t.float() for t in args), SIZES)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.scores, other.scores)
        assert mine.to_rle() == other.to_rle()


def test_nothing() -> None:
    assert decode_query_masks(torch.zeros(0, 5, 3), torch.zeros(0, 5, 4, 4), torch.zeros(0, 5, 4), []) == []
    (none,) = decode_query_masks(torch.zeros(1, 0, 3), torch.zeros(1, 0, 4, 4), torch.zeros(1, 0, 4), [(6, 8)])
    assert len(none) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_logits": torch.zeros(2, 9)}, r"class_logits: expected shape \(B, Q, C\), got \(2, 9\)"),
        ({"mask_logits": torch.zeros(2, 8, 4, 4)}, r"mask_logits: expected shape \(2, 9, h, w\), got \(2, 8, 4, 4\)"),
        ({"boxes_cxcywh": torch.zeros(2, 9, 5)}, r"boxes_cxcywh: expected shape \(2, 9, 4\) to match class_logits"),
        ({"image_sizes": [(6, 8)]}, "image_sizes: expected 2 pairs, one per image, got 1"),
        ({"max_detections": -1}, "max_detections: expected at least 0, got -1"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    logits, masks, boxes = outputs()
    good: dict[str, Any] = dict(class_logits=logits, mask_logits=masks, boxes_cxcywh=boxes, image_sizes=SIZES)
    with pytest.raises(ValueError, match=message):
        decode_query_masks(**good | change)
