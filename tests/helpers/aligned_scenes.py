"""Batches for the tests of task-aligned assignment, and whether float32 decides them as the definition does."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from yolox_scenes import clear, yolox_scene

from detops.assign.tal import TalRule
from detops.geometry.boxes import to_xyxy
from detops.reference import tal_match as definition


class AlignedScene(NamedTuple):
    """Tensors of tal_match, without its rule."""

    class_logits: list[Tensor]
    pred_boxes: Tensor
    points: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor
    sample_sizes: Tensor | None
    valid: Tensor | None


def aligned_scene(
    seed: int,
    batch: int = 2,
    boxes: int = 5,
    classes: int = 4,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
    odd: bool = False,
    coarse: bool = False,
    ragged: bool = False,
    masked: bool = False,
) -> AlignedScene:
    """Predictions near some of the boxes, as in training; `odd`, `coarse` and `ragged` as in `yolox_scene`.

    With `masked` a sixth of the points do not exist.
    """
    levels, _, pred, points, gt, labels, sizes = yolox_scene(
        seed, batch, boxes, classes, size, dtype, index_dtype, odd, coarse, ragged
    )
    valid = None
    if masked:
        valid = torch.rand(pred.shape[:2], generator=torch.Generator().manual_seed(seed)) > 1 / 6
    return AlignedScene(levels, to_xyxy(pred), points, to_xyxy(gt), labels, sizes, valid)


Numbers = tuple[float, float, int, bool, bool, bool, bool, float, float, float, float]


def numbers(rule: TalRule) -> Numbers:
    """A rule as the op takes it."""
    reach = math.inf if rule.reach is None else rule.reach
    return (
        rule.alpha, rule.beta, rule.topk, rule.overlap == "ciou", rule.candidates == "all", rule.contest == "all",
        rule.fallback, rule.margin, reach, rule.min_side, rule.eps,
    )  # fmt: skip


def decided(scene: AlignedScene, rule: TalRule, margin: float = 2e-4) -> bool:
    """Whether float32 must come to the same decisions: each is a tie of equal inputs, or clear by `margin`."""
    points = scene.points.double()
    for b in range(len(scene.pred_boxes)):
        count = scene.gt_boxes.shape[1] if scene.sample_sizes is None else int(scene.sample_sizes[b])
        boxes, labels = scene.gt_boxes[b, :count].double(), scene.gt_labels[b, :count].long()
        u = definition.overlaps(boxes, scene.pred_boxes[b].double(), rule.overlap == "ciou")
        if ((u > 0) & (u < 2e-5)).any():  # a complete IoU near 0: rounding tells on which side
            return False
        logits = torch.cat([level[b] for level in scene.class_logits]).double()
        m = definition.metric(logits, labels, u, rule.alpha, rule.beta)
        inside = definition.regions(points, boxes, *numbers(rule)[7:10])
        for change in (1e-4, -1e-4):
            other = definition.regions(points, boxes, rule.margin + change, numbers(rule)[8] - change, rule.min_side)
            # On the border exactly it is decided, as the numbers are then exact.
            border = definition.regions(
                points, boxes, rule.margin + math.copysign(2e-9, change), math.inf, rule.min_side
            )
            whole = definition.regions(points, boxes, rule.margin, math.inf, rule.min_side)
            if ((other != inside) & ~((border != whole) & (whole == inside))).any():
                return False
        log_m = m.clamp(min=1e-45).log()
        if ((m > 0) & (m < 2 * definition.TINY)).any():
            return False
        allowed = torch.ones_like(inside) if rule.candidates == "all" or rule.fallback else inside
        for n in range(count):
            # An overlap of u is rounded by a few 1e-7, which m has beta times.
            if not clear(log_m[n][allowed[n] & (m[n] > 0)], margin):
                return False
        if not all(clear(column, 1e-6) for column in u.T):
            return False
    return True
