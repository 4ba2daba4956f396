"""Adaptive training sample selection (ATSS), the assignment of GFL and its kin, for a whole batch; and its anchors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import Assignment, labels_of
from detops.assign.simota import check_values
from detops.diagnostics.checked import is_checked
from detops.geometry.boxes import to_cxcywh
from detops.ragged.padded import Batch, boxes_with_labels

MOST_CANDIDATES = 1000  # of a level


def atss_assign(
    anchors: Tensor,
    level_sizes: Sequence[int],
    boxes: Batch,
    labels: Batch,
    num_classes: int,
    *,
    topk: int = 9,
    valid: Tensor | None = None,
) -> Assignment:
    """Give each box the anchors that suit it, by a threshold of its own.

    Of each level the `topk` anchors nearest to the box's centre are candidates. The threshold is the mean of their IoUs
    with the box plus their standard deviation; candidates of at least this IoU whose centre lies in the box, by more
    than 0.01 pixels, are the box's. An anchor that several boxes took goes to the one of the highest IoU, ties to the
    lower index. Whole batch, all levels; memory grows with images times anchors; the host waits for nothing.

    A box takes nothing that has a negative side, an area that is not finite in float32, or a label that is no class; a
    negative label means "ignore this box".

    Args:
        anchors: (A, 4) xyxy in pixels, level after level; `grid_anchors` makes them.
        level_sizes: How many anchors each level has.
        boxes: `RaggedBatch` (B, N, 4), or a list of B tensors (n, 4): xyxy in pixels. A tensor (B, N, 4) is a batch
            without padding.
        labels: Likewise (B, N) integers, 0 .. num_classes - 1.
        num_classes: Number of classes.
        topk: See above; 1 .. 1000.
        valid: (B, A) bool, anchors that exist for an image, as those over its padding may not; None for all.

    Returns:
        The assignment; `iou` is that of anchor and box.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> anchors = grid_anchors([(4, 4), (2, 2)], [8, 16], scale=2)
        >>> box, label = torch.tensor([[4.0, 4, 21, 20]]), torch.tensor([3])
        >>> found = atss_assign(anchors, [16, 4], [box], [label], num_classes=5)
        >>> (found.box_index[0] >= 0).nonzero().flatten().tolist(), found.num_positives
        ([5, 6, 9, 10], tensor(4))

    Reference:
        Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
        Selection", 2020.
    """
    return match(anchors, level_sizes, boxes, labels, num_classes, topk, valid).assignment()


class Match(NamedTuple):
    """What the op says, and of what.

    Attributes:
        boxes: (B, N, 4), padded.
        labels: (B, N).
        index: (B, A) int64, the box of each anchor, or -1.
        iou: (B, A) float32.
        threshold: (B, N) float32, of each box; infinite for one that has no candidate.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]
    iou: Tensor
    threshold: Tensor

    def assignment(self) -> Assignment:
        """What of this is public."""
        return Assignment(self.index, labels_of(self.index, self.labels), self.iou, (self.index >= 0).sum())


def match(
    anchors: Tensor, level_sizes: Sequence[int], boxes: Batch, labels: Batch, num_classes: int, topk: int,
    valid: Tensor | None, batch: int | None = None,
) -> Match:  # fmt: skip
    """Check the arguments of `atss_assign`, and call the op; `batch` is how many images there must be."""
    gt, label, sizes = boxes_with_labels(boxes, labels)
    require_tensor("anchors", anchors, FLOATS + INTEGERS, "numbers")
    if anchors.dim() != 2 or anchors.shape[1] != 4:
        raise ValueError(f"anchors: expected shape (A, 4), got {tuple(anchors.shape)}")
    if any(size < 0 for size in level_sizes) or sum(level_sizes) != len(anchors):
        raise ValueError(f"level_sizes: expected numbers with the sum {len(anchors)}, got {list(level_sizes)}")
    require_tensor("boxes", gt, FLOATS + INTEGERS, "numbers")
    if gt.dim() != 3 or gt.shape[2] != 4:
        raise ValueError(f"boxes: expected shape (B, N, 4), got {tuple(gt.shape)}")
    if batch is not None and len(gt) != batch:
        raise ValueError(f"boxes: expected {batch} images, as cls_scores has, got {len(gt)}")
    require_tensor("labels", label, INTEGERS, "integers")
    require_shape("labels", label, tuple(gt.shape[:2]), "to match boxes")
    if valid is not None:
        require_tensor("valid", valid, (torch.bool,), "a bool tensor")
        require_shape("valid", valid, (len(gt), len(anchors)), "to match boxes and anchors")
        require_device("valid", valid, anchors, "anchors")
    for name, value in (("boxes", gt), ("labels", label)):
        require_device(name, value, anchors, "anchors")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
    if not 1 <= topk <= MOST_CANDIDATES:
        raise ValueError(f"topk: expected 1 .. {MOST_CANDIDATES}, got {topk!r}")
    if is_checked():
        check_values("boxes", to_cxcywh(gt.detach().double()), label, sizes, num_classes, gt, any_area=False)
    gt = gt.detach()
    found = ops.atss_match(
        anchors=anchors,
        level_sizes=list(level_sizes),
        gt_boxes=gt,
        gt_labels=label,
        sample_sizes=sizes,
        valid=valid,
        num_classes=num_classes,
        topk=topk,
    )
    return Match(gt, label, *found)
