"""SimOTA, YOLOX's label assignment, for a whole batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import IGNORED, Assignment
from detops.geometry.boxes import to_cxcywh
from detops.geometry.points import points_in_boxes
from detops.ground_truth import GroundTruth, Targets, require_ground_truth

Candidates = Literal["all", "own"]
Region = Literal["box_or_center", "center"]


def simota_assign(
    class_logits: Tensor | Sequence[Tensor],
    objectness: Tensor,
    pred_boxes: Tensor,
    points: Tensor,
    targets: Targets,
    *,
    center_radius: float = 2.5,
    candidates: Candidates = "all",
    region: Region = "box_or_center",
    topk: int = 10,
    dynamic_ks_bias: float | None = None,
    iou_weight: float = 3.0,
    class_weight: float = 1.0,
) -> Assignment:
    """Assign boxes to the cells whose predictions fit them best, by SimOTA, as YOLOX is trained.

    A cell is a box's own candidate if its centre lies in the box or within `center_radius` cells of the box's centre;
    if both hold, it is preferred to all other cells (the original adds 1e5 to the cost of those). Each box picks its k
    cheapest cells, where k is the truncated sum of its `topk` highest IoUs, at least 1. The cost is

        class_weight * sum over classes of BCE(sqrt(sigmoid(class) * sigmoid(objectness)), label)
        - iou_weight * log(IoU + 1e-8)

    computed from logits, with logarithms of probabilities of at least -100. Ties go to the lower index. Memory grows
    with images times cells, not with boxes; nothing is differentiated, and the host never waits.

    A box is skipped if it has no own candidates (it lies off the image), a negative side, a coordinate that is not
    finite, or a label that is no class; a negative label means "ignore this box".

    Args:
        class_logits: (B, A, C), or a list of each level's (B, A_l, C), of any strides.
        objectness: (B, A) logits.
        pred_boxes: (B, A, 4) xyxy in pixels.
        points: (A, 3): x and y of each cell's centre, and its stride, in pixels; `grid_points` makes them.
        targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels, labels 0 .. C - 1.
        center_radius: Largest distance from a box's centre along each axis, in cells, exclusive; a cell in a box must
            lie strictly inside it as well.
        candidates: Cells that a box chooses from, for k and for its cells. "all": the candidates of all boxes of its
            image; a cell that several boxes picked gets the cheapest of all boxes (YOLOX). "own": its own candidates;
            such a cell gets the cheapest box that picked it (super-gradients' fast variant).
        region: "center": own candidates are only the cells near the centre, as in YOLOX's current code, with a
            `center_radius` of 1.5. "box_or_center" is the rule above.
        topk: Number of IoUs that are summed to k.
        dynamic_ks_bias: Factor of the sum, 1.1 in the fast variant; None for 1.
        iou_weight: Weight of the IoU's term in the cost.
        class_weight: Weight of the classes' term.

    Returns:
        The assignment; a cell has at most one box. `quality` is the IoU of the box with the prediction there. A cell
        without a box whose centre lies in an ignored region of the targets is ignored.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a number is out of range; in checked mode also a box that would
            be skipped for its values.

    Example:
        >>> import detops
        >>> points = detops.grid_points([(4, 4)], [8])
        >>> center, stride = points[:, :2], points[:, 2:]
        >>> pred_boxes = torch.cat([center - stride, center + stride], 1)[None]
        >>> targets = [torch.tensor([[4.0, 4, 20, 20]])], [torch.tensor([1])]
        >>> found = simota_assign(torch.zeros(1, 16, 2), torch.zeros(1, 16), pred_boxes, points, targets)
        >>> found.box_index.reshape(4, 4)[1], found.num_positives
        (tensor([-1,  0, -1, -1]), tensor(2))

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and Ge et al., "OTA", 2021.
    """
    levels = [class_logits] if isinstance(class_logits, Tensor) else list(class_logits)
    _check(levels, objectness, pred_boxes, points)
    rule = SimOTARule(center_radius, candidates, region, topk, dynamic_ks_bias, iou_weight, class_weight)
    rule.check()
    truth = require_ground_truth(
        targets, levels[0].shape[2], batch=len(objectness), like=objectness, like_name="objectness"
    )
    boxes = to_cxcywh(pred_boxes.detach().to(torch.float32))
    index, iou, _ = match_points([level.detach() for level in levels], objectness.detach(), boxes, points, truth, rule)
    return Assignment.of(index, iou, truth.labels)


class SimOTARule(NamedTuple):
    """The options of `simota_assign`, with YOLOX's values."""

    center_radius: float = 2.5
    candidates: Candidates = "all"
    region: Region = "box_or_center"
    topk: int = 10
    dynamic_ks_bias: float | None = None
    iou_weight: float = 3.0
    class_weight: float = 1.0

    def check(self) -> None:
        """Check the options.

        Raises:
            ValueError: An option is out of range.
        """
        for name, allowed in (("candidates", ("all", "own")), ("region", ("box_or_center", "center"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected {allowed[0]!r} or {allowed[1]!r}, got {getattr(self, name)!r}")
        if not 1 <= self.topk <= 1000:
            raise ValueError(f"topk: expected 1 .. 1000, got {self.topk!r}")
        if self.dynamic_ks_bias is not None and not 0 <= self.dynamic_ks_bias <= 1000:
            raise ValueError(f"dynamic_ks_bias: expected 0 .. 1000, got {self.dynamic_ks_bias!r}")
        if not self.center_radius >= 0:
            raise ValueError(f"center_radius: expected at least 0, got {self.center_radius!r}")


def match_points(
    outputs: list[Tensor],
    objectness: Tensor | None,
    pred_cxcywh: Tensor | None,
    points: Tensor,
    targets: GroundTruth,
    rule: SimOTARule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the op; arguments as in `simota_assign`, already checked, predicted boxes as centre and size.

    Args:
        outputs: Each level's class logits (B, A_l, C); or, given no boxes, its raw outputs (B, A_l, 5 + C).
        objectness: (B, A); None without boxes.
        pred_cxcywh: (B, A, 4), or None.
        points: (A, 3).
        targets: The ground truth.
        rule: The options.

    Returns:
        (B, A) int64 box of each point, -1 background, -2 ignored; (B, A) IoU with it, 0 without a box; 0-d int64 number
        of points with a box.
    """
    gt_boxes, cxcywh = targets._given_boxes()
    index, iou, positives = ops.simota_match(
        outputs=outputs,
        objectness=objectness,
        pred_boxes=pred_cxcywh,
        cells=points,
        gt_boxes=gt_boxes,
        gt_labels=targets.labels,
        sample_sizes=targets.sample_sizes,
        radius=float(rule.center_radius),
        center_only=rule.region == "center",
        own_candidates=rule.candidates == "own",
        topk=rule.topk,
        k_scale=1.0 if rule.dynamic_ks_bias is None else float(rule.dynamic_ks_bias),
        iou_weight=float(rule.iou_weight),
        class_weight=float(rule.class_weight),
        cxcywh=cxcywh,
    )
    if targets.ignored is not None:
        ignored = points_in_boxes(points, targets.ignored, targets.ignored_exists())
        index = index.where((index >= 0) | ~ignored, IGNORED)
    return index, iou, positives


def _check(levels: list[Tensor], objectness: Tensor, pred_boxes: Tensor, points: Tensor) -> None:
    """Check types and shapes, without reading the device's memory."""
    require_tensor("objectness", objectness, FLOATS, "a floating-point tensor")
    if objectness.dim() != 2:
        raise ValueError(f"objectness: expected shape (B, A), got {tuple(objectness.shape)}")
    if not levels:
        raise ValueError("class_logits: expected at least one level, got an empty list")
    batch, count = objectness.shape
    for level in levels:
        require_tensor("class_logits", level, FLOATS, "floating-point tensors")
        if level.dim() != 3 or level.shape[0] != batch or level.shape[2] != levels[0].shape[-1] or level.shape[2] < 1:
            raise ValueError(f"class_logits: expected shape ({batch}, A_l, C), got {tuple(level.shape)}")
        require_device("class_logits", level, objectness, "objectness")
    rows = sum(level.shape[1] for level in levels)
    if rows != count:
        raise ValueError(f"class_logits: expected {count} points, as objectness has, got {rows}")
    for name, value, shape, dtypes in (
        ("pred_boxes", pred_boxes, (batch, count, 4), FLOATS),
        ("points", points, (count, 3), FLOATS + INTEGERS),
    ):
        require_tensor(name, value, dtypes, "numbers" if INTEGERS[0] in dtypes else "a floating-point tensor")
        require_shape(name, value, shape, "to match objectness")
        require_device(name, value, objectness, "objectness")
