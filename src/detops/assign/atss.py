"""Adaptive training sample selection (ATSS), the assignment of GFL and related detectors, for a whole batch."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import Assignment
from detops.geometry.boxes import overlap_of_first
from detops.ground_truth import GroundTruth, Targets, require_ground_truth

MOST_CANDIDATES = 1000  # per level


def atss_assign(
    anchors: Tensor,
    level_sizes: Sequence[int],
    targets: Targets,
    num_classes: int,
    *,
    topk: int = 9,
    contest: Literal["takers", "all"] = "takers",
    strict: bool = False,
    margin: float = 0.01,
    valid: Tensor | None = None,
    ignore_overlap: float = 0.5,
) -> Assignment:
    """Assign boxes to anchors by ATSS, with an IoU threshold per box.

    On each level the `topk` anchors nearest to the box's centre are candidates. The threshold is the mean of their IoUs
    with the box plus their standard deviation. The box is assigned to the candidates of at least this IoU whose centre
    lies in it. An anchor that several boxes qualify for gets the one with the highest IoU, ties go to the lower index.
    A level with fewer anchors than `topk` has fewer candidates. Memory grows with images times anchors, not with boxes;
    the host never waits.

    The static assigner of PP-YOLOE and super-gradients is `contest="all", strict=True, margin=1e-9`.

    A box is skipped if it has a negative side, an area that is not finite in float32, or a label that is no class; a
    negative label means "ignore this box".

    Args:
        anchors: (A, 4) xyxy in pixels, level after level; `grid_anchors` makes them.
        level_sizes: Number of anchors of each level.
        targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels.
        num_classes: Number of classes; labels are 0 .. num_classes - 1.
        topk: Candidates per level, 1 .. 1000.
        contest: Boxes among which an anchor that several qualify for goes to the highest IoU: the "takers", or "all"
            boxes of the image, even those that do not qualify.
        strict: Whether an anchor's IoU must be above the threshold; else it may be equal.
        margin: A centre lies in a box if it is more than this many pixels from each side.
        valid: (B, A) bool, anchors that take part in each image, such as those not over its padding; None for all.
        ignore_overlap: An anchor is ignored if more than this fraction of its area lies in an ignored region of the
            targets: it is not a candidate, and its `box_index` is -2. MMDetection's `ignore_iof_thr`.

    Returns:
        The assignment; `quality` is the IoU of anchor and box.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> import detops
        >>> anchors = detops.grid_anchors([(4, 4), (2, 2)], [8, 16], scale=2)
        >>> box, label = torch.tensor([[4.0, 4, 21, 20]]), torch.tensor([3])
        >>> found = atss_assign(anchors, [16, 4], ([box], [label]), num_classes=5)
        >>> (found.box_index[0] >= 0).nonzero().flatten().tolist(), found.num_positives
        ([5, 6, 9, 10], tensor(4))

    Reference:
        Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample
        Selection", 2020.
    """
    require_tensor("anchors", anchors, FLOATS + INTEGERS, "numbers")
    if anchors.dim() != 2 or anchors.shape[1] != 4:
        raise ValueError(f"anchors: expected shape (A, 4), got {tuple(anchors.shape)}")
    if any(size < 0 for size in level_sizes) or sum(level_sizes) != len(anchors):
        raise ValueError(f"level_sizes: expected numbers with the sum {len(anchors)}, got {list(level_sizes)}")
    truth = require_ground_truth(targets, num_classes, like=anchors, like_name="anchors", needs_area=True)
    if valid is not None:
        require_tensor("valid", valid, (torch.bool,), "a bool tensor")
        require_shape("valid", valid, (len(truth), len(anchors)), "to match targets and anchors")
        require_device("valid", valid, anchors, "anchors")
    require_topk(topk)
    if not 0 <= ignore_overlap <= 1:
        raise ValueError(f"ignore_overlap: expected 0 .. 1, got {ignore_overlap!r}")
    if contest not in ("takers", "all"):
        raise ValueError(f"contest: expected 'takers' or 'all', got {contest!r}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin: expected a number of at least 0, got {margin!r}")
    rule = AtssRule(topk, margin, strict, contest == "all")
    return match_anchors(anchors, level_sizes, truth, num_classes, rule, valid, ignore_overlap).assignment(truth)


class AtssRule(NamedTuple):
    """How boxes take anchors; see `atss_assign`."""

    topk: int = 9
    margin: float = 0.01
    strict: bool = False
    all_boxes: bool = False


class AnchorMatch(NamedTuple):
    """The results of the op `atss_match`, and the anchors that took part.

    Attributes:
        index: (B, A) int64, the box of each anchor, or -1.
        iou: (B, A) float32, IoU of anchor and box, 0 without a box.
        threshold: (B, N) float32, lowest IoU of a box with its anchors; infinite for a box without candidates.
        positives: (B,) int64, number of anchors of each image that have a box.
        valid: (B, A) bool, anchors that take part; None for all.
        ignored: (B, A) bool, anchors in ignored regions, which are not valid; None for none.
    """

    index: Tensor  # type: ignore[assignment]
    iou: Tensor
    threshold: Tensor
    positives: Tensor
    valid: Tensor | None
    ignored: Tensor | None

    def assignment(self, targets: GroundTruth) -> Assignment:
        """Return the match as an `Assignment`."""
        return Assignment.of(self.index, self.iou, targets.labels, self.ignored)


def match_anchors(
    anchors: Tensor,
    level_sizes: Sequence[int],
    targets: GroundTruth,
    num_classes: int,
    rule: AtssRule,
    valid: Tensor | None,
    ignore_overlap: float = 0.5,
) -> AnchorMatch:
    """Call the op; arguments as in `atss_assign`, already checked."""
    ignored = None
    if targets.ignored is not None:
        share = overlap_of_first(anchors.to(torch.float32), targets.ignored.to(torch.float32))  # (B, A, M)
        ignored = ((share > ignore_overlap) & targets.ignored_exists()[:, None]).any(-1)
        valid = ~ignored if valid is None else valid & ~ignored
    index, iou, threshold, positives = ops.atss_match(
        anchors=anchors,
        level_sizes=list(level_sizes),
        gt_boxes=targets.boxes.detach(),
        gt_labels=targets.labels,
        sample_sizes=targets.sample_sizes,
        valid=valid,
        num_classes=num_classes,
        **rule._asdict(),
    )
    return AnchorMatch(index, iou, threshold, positives, valid, ignored)


def require_topk(topk: int) -> None:
    """Check the number of candidates per level.

    Raises:
        ValueError: It is out of range.
    """
    if not 1 <= topk <= MOST_CANDIDATES:
        raise ValueError(f"topk: expected 1 .. {MOST_CANDIDATES}, got {topk!r}")
