"""Task-aligned assignment, by which TOOD, PP-YOLOE, YOLO-NAS and YOLOv8 to v10 are trained, for a whole batch."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import IGNORED, Assignment
from detops.geometry.points import points_in_boxes
from detops.ground_truth import GroundTruth, Targets, require_ground_truth

RuleName = Literal["ppyoloe", "tood", "yolov8", "yolov9"]
MOST_CANDIDATES = 1000


class TalRule(NamedTuple):
    """The parameters of task-aligned assignment; the defaults are those of PP-YOLOE and YOLO-NAS.

    Attributes:
        alpha: Exponent of the probability in the metric, at least 0.
        beta: Exponent of the overlap, at least 0.
        topk: Points that a box takes at most, 1 .. 1000.
        overlap: "iou"; or "ciou", the complete IoU, at least 0.
        candidates: Points that a box's `topk` are chosen from: those "inside" it; or "all", and it takes those of them
            that are inside.
        contest: Boxes among which a point that several took goes to the highest overlap: the "takers", or "all" boxes
            of the image.
        fallback: Whether a box that took nothing takes the point of its highest metric, wherever that lies. Contests
            come after, so that it may lose it again.
        margin: A point is inside a box if it is at least this many pixels from each side; 0 lets in the border.
        reach: Greatest distance in strides from a point inside to any side, as a head of so many bins can regress; None
            for any.
        min_side: For the margin, boxes are at least this many strides of the point wide and high, so that boxes smaller
            than a cell have points too.
        eps: Added to a box's highest metric before its points' metrics are divided by it.
    """

    alpha: float = 1.0
    beta: float = 6.0
    topk: int = 13
    overlap: Literal["iou", "ciou"] = "iou"
    candidates: Literal["inside", "all"] = "inside"
    contest: Literal["takers", "all"] = "all"
    fallback: bool = False
    margin: float = 1e-9
    reach: float | None = None
    min_side: float = 0.0
    eps: float = 1e-9

    def check(self) -> None:
        """Check what is out of range.

        Raises:
            ValueError: A parameter is.
        """
        names = (("overlap", ("iou", "ciou")), ("candidates", ("inside", "all")), ("contest", ("takers", "all")))
        for name, allowed in names:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected {allowed[0]!r} or {allowed[1]!r}, got {getattr(self, name)!r}")
        if not 1 <= self.topk <= MOST_CANDIDATES:
            raise ValueError(f"topk: expected 1 .. {MOST_CANDIDATES}, got {self.topk!r}")
        for name in ("alpha", "beta", "margin", "min_side", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)!r}")
        if self.reach is not None and not self.reach > 0:
            raise ValueError(f"reach: expected a number above 0, or None, got {self.reach!r}")


RULES: dict[str, TalRule] = {
    "ppyoloe": TalRule(),
    "tood": TalRule(candidates="all", contest="takers", margin=0.01, eps=1e-7),
    "yolov8": TalRule(0.5, 6.0, 10, overlap="ciou", contest="takers"),
    "yolov9": TalRule(0.5, 6.0, 10, overlap="ciou", contest="takers", fallback=True, margin=0.0, reach=15 - 0.01),
}


def tal_assign(
    class_logits: Tensor | Sequence[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    targets: Targets,
    *,
    rule: RuleName | TalRule = "ppyoloe",
    topk: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    valid: Tensor | None = None,
) -> Assignment:
    """Assign each box the points at which class and box are predicted best.

    With p, the probability of the box's label that a point predicts, and u, the overlap of the box with the one that it
    predicts, a box takes the `topk` points inside it of the highest m = p^alpha * u^beta. A point that several boxes
    took goes to the one of the highest u. The score target of a point, the assignment's `quality`, is

        m / (highest m of its box + eps) * highest u of its box

    over the points that the box has in the end. The rules are sets of values of `TalRule`:

        rule       alpha beta topk  u    candidates        contested among  box without any  quality's eps
        "ppyoloe"  1     6    13    IoU  inside            all boxes        stays so         1e-9
        "tood"     1     6    13    IoU  all, then inside  takers           stays so         1e-7
        "yolov8"   0.5   6    10    CIoU inside            takers           stays so         1e-9
        "yolov9"   0.5   6    10    CIoU inside            takers           its best m       1e-9

    "ppyoloe" is YOLO-NAS' rule too. For "yolov8", of which only the numbers are documented, the rest was chosen here.
    "yolov9" takes points on the border, none further than 14.99 strides from a side: that is a head whose last bin is
    15, "reg_max 16" in YOLO's words; for another, `RULES["yolov9"]._replace(reach=...)` with `detops.assign.tal.RULES`.
    A head that predicts each box once (YOLOv10) is assigned by the same rule with `topk=1`.

    A metric of 0 takes nothing. A box takes nothing either if it has a negative side or a number that is not finite, or
    a label that is no class; a negative label means "ignore this box". Ties go to the lower index. Memory grows with
    images times points, not with boxes; nothing is differentiated, and the host waits for nothing.

    Args:
        class_logits: (B, A, C), or a list of each level's (B, A_l, C), of any strides.
        pred_boxes: (B, A, 4) xyxy in pixels.
        points: (A, 3): x, y and stride in pixels; `grid_points` makes them.
        targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels, labels 0 .. C - 1.
        rule: Name of a rule, or a `TalRule`.
        topk: In place of the rule's.
        alpha: In place of the rule's.
        beta: In place of the rule's.
        valid: (B, A) bool, points that exist for an image, as those over its padding may not; None for all.

    Returns:
        The assignment; a point has at most one box. A point without a box that lies in an ignored region of the targets
        is ignored.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> import detops
        >>> points = detops.grid_points([(2, 2)], [8])
        >>> pred_boxes = torch.tensor([[[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [6, 8, 16, 16]]])
        >>> targets = [torch.tensor([[0.0, 0, 9, 10], [8, 8, 16, 16]])], [torch.tensor([0, 1])]
        >>> found = tal_assign(torch.zeros(1, 4, 2), pred_boxes, points, targets)
        >>> found.box_index, found.quality
        (tensor([[ 0, -1, -1,  1]]), tensor([[0.7111, 0.0000, 0.0000, 0.8000]]))

    Reference:
        Feng et al., "TOOD: Task-aligned One-stage Object Detection", 2021; Xu et al., "PP-YOLOE", 2022; Wang et al.,
        "YOLOv10: Real-Time End-to-End Object Detection", 2024.
    """
    levels = [class_logits] if isinstance(class_logits, Tensor) else list(class_logits)
    _check(levels, pred_boxes, points, valid)
    chosen = require_rule(rule, topk=topk, alpha=alpha, beta=beta)
    truth = require_ground_truth(
        targets, levels[0].shape[2], batch=len(pred_boxes), like=pred_boxes, like_name="pred_boxes"
    )
    logits = [level.detach() for level in levels]
    return Assignment.of(*match_aligned(logits, pred_boxes.detach(), points, truth, chosen, valid), truth.labels)


def require_rule(
    rule: RuleName | TalRule, *, topk: int | None = None, alpha: float | None = None, beta: float | None = None
) -> TalRule:
    """Return a rule, with those values changed that are not None.

    Raises:
        ValueError: There is no rule of this name, or a number is out of range.
    """
    if not isinstance(rule, TalRule):
        if rule not in RULES:
            raise ValueError(f"rule: expected a TalRule or one of {', '.join(RULES)}, got {rule!r}")
        rule = RULES[rule]
    rule = rule._replace(
        topk=rule.topk if topk is None else topk,
        alpha=rule.alpha if alpha is None else alpha,
        beta=rule.beta if beta is None else beta,
    )
    rule.check()
    return rule


def match_aligned(
    class_logits: list[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    targets: GroundTruth,
    rule: TalRule,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `box_index` and `quality` of an assignment; arguments as in `tal_assign`, checked already."""
    index, quality = ops.tal_match(
        class_logits=class_logits,
        pred_boxes=pred_boxes,
        points=points,
        gt_boxes=targets.boxes.detach(),
        gt_labels=targets.labels,
        sample_sizes=targets.sample_sizes,
        valid=valid,
        alpha=float(rule.alpha),
        beta=float(rule.beta),
        topk=rule.topk,
        ciou=rule.overlap == "ciou",
        all_points=rule.candidates == "all",
        all_boxes=rule.contest == "all",
        fallback=rule.fallback,
        margin=float(rule.margin),
        reach=math.inf if rule.reach is None else float(rule.reach),
        min_side=float(rule.min_side),
        eps=float(rule.eps),
    )
    if targets.ignored is not None:
        ignored = points_in_boxes(points, targets.ignored, targets.ignored_exists())
        index = index.where((index >= 0) | ~ignored, IGNORED)
    return index, quality


def _check(levels: list[Tensor], pred_boxes: Tensor, points: Tensor, valid: Tensor | None) -> None:
    """Check what can be checked without reading the device's memory."""
    require_tensor("pred_boxes", pred_boxes, FLOATS, "a floating-point tensor")
    if pred_boxes.dim() != 3 or pred_boxes.shape[2] != 4:
        raise ValueError(f"pred_boxes: expected shape (B, A, 4), got {tuple(pred_boxes.shape)}")
    if not levels:
        raise ValueError("class_logits: expected at least one level, got an empty list")
    batch, count = pred_boxes.shape[:2]
    for level in levels:
        require_tensor("class_logits", level, FLOATS, "floating-point tensors")
        if level.dim() != 3 or level.shape[0] != batch or level.shape[2] != levels[0].shape[-1] or level.shape[2] < 1:
            raise ValueError(f"class_logits: expected shape ({batch}, A_l, C), got {tuple(level.shape)}")
        require_device("class_logits", level, pred_boxes, "pred_boxes")
    rows = sum(level.shape[1] for level in levels)
    if rows != count:
        raise ValueError(f"class_logits: expected {count} points, as pred_boxes has, got {rows}")
    require_tensor("points", points, FLOATS + INTEGERS, "numbers")
    require_shape("points", points, (count, 3), "to match pred_boxes")
    require_device("points", points, pred_boxes, "pred_boxes")
    if valid is not None:
        require_tensor("valid", valid, (torch.bool,), "a bool tensor")
        require_shape("valid", valid, (batch, count), "to match pred_boxes")
        require_device("valid", valid, pred_boxes, "pred_boxes")
